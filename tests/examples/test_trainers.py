"""The examples with trainers, as a person would start them, with the tiny model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = r"held: (\d+) of 32 new questions right, old embeddings at cosine (\d\.\d{3})"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "127.0.0.1:0")  # fmt: skip


def printed(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments, "--small"],
        capture_output=True, text=True, timeout=240, check=False, cwd=EXAMPLES,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cosines(text):
    found = re.findall(r"(plain|held): \d+ of 32 .* at cosine (\d\.\d{3})", text)
    return {what: float(cosine) for what, cosine in found}


@pytest.mark.parametrize("name", ["trainer", "lora", "lightning", "accelerate"])
def test_what_is_held_moves_less(name):
    pytest.importorskip({"trainer": "accelerate", "lora": "peft"}.get(name, name))
    found = cosines(printed(f"{name}_minilm.py"))
    assert found["held"] >= found["plain"]
    assert found["held"] >= 0.999


def test_two_processes():
    for more in ([], ["--fsdp"]):
        said = printed(*TORCHRUN, "distributed_minilm.py", *more)
        assert "Ω is of 16 questions, on 2 ranks" in said
        assert re.search(SAID, said)


def test_each_is_short_and_in_the_list():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*_minilm.py"):
        assert f"examples/{path.name}" in listed
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 65
