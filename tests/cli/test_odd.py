"""Odd values, odd names, and code that a folder names: said in words, before anything is done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from retain import report
from retain.errors import ConfigError, ModelError
from retain.models import build_model
from tests.cli.test_commands import TINY, refused, retain


@pytest.mark.parametrize(
    "line",
    [
        [*TINY, "--out", ""],
        ["demo", "--out", " "],
        ["study", "table2", "--data", "digits", "--out", ""],
        ["report", ""],
        ["inspect", ""],
        ["repair", "", "b.pt", "--memory", "m", "--out", "o"],
        ["repair", "a.pt", "b.pt", "--memory", "", "--out", "o"],
        ["repair", "a.pt", "b.pt", "--memory", "m", "--out", ""],
        ["repair", "a.pt", "b.pt", "--memory", "m", "--out", "o", "--amount", "nan"],
        ["compare", "--tasks", "digits", "--out", ""],
        ["datasets", "--data", ""],
        [*TINY, "--out", "a" * 300],
        [*TINY, "--out", "out", "--weights", ""],
        [*TINY, "--out", "out", "--seeds", ""],
        [*TINY, "--out", "out", "--methods", ","],
        [*TINY, "--out", "out", "--seeds", "1" + "0" * 400],
        [*TINY, "--out", "out", "--epochs", "1" + "0" * 400],
        *(
            [*command, "--out", "out", "--workers", odd]
            for command in (TINY, ["study", "table2", "--data", "digits"])
            for odd in ("0", "-1", "1" + "0" * 400, "", "two")
        ),
        [*TINY, "--out", "out", "--scheduler", ""],
        [*TINY, "--out", "out", "--scheduler", "localhost:8786"],
        [*TINY, "--out", "out", "--workers", "2", "--scheduler", "tcp://localhost:8786"],
        [*TINY, "--out", "out", "--lr", "nan"],
        [*TINY, "--out", "out", "--device", "meta"],
        [*TINY, "--out", "out", "--device", "cuda:99"],
        [*TINY, "--out", "out", "--tasks", "permuted-digits=²"],
        [*TINY, "--out", "out", "--tasks", "permuted-digits=999999999999"],
        ["importance", "x.py:f", "--data", "", "--out", "o"],
        ["importance", "x.py:f", "--data", ".", "--out", "o", "--batch-size", "0"],
        ["importance", "x.py:f", "--data", ".", "--out", "o", "--max-samples", "-1"],
    ],
)
def test_a_value_that_is_none_is_refused_and_nothing_is_written(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    result = retain(*line)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_fit_are_refused_with_the_estimate(tmp_path):
    result = retain("run", "--tasks", "folders:a=x", "--image-size", 1_000_000, "--batch-size", 100,
                    "--out", tmp_path)  # fmt: skip
    assert refused(result, "a batch takes 1,200,000 GB", "this machine has")


# ---- code that a folder names ----

CODE = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("ran").touch()
def made():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
"""


def with_code(folder):
    folder.mkdir()
    file = folder / "mine.py"
    file.write_text(CODE)
    return file, f"{file}:made"


def test_a_folder_does_not_say_which_code_is_run(tmp_path):
    file, spec = with_code(tmp_path / "code")
    out = ("--out", tmp_path / "out")
    assert retain(*TINY, "--model", spec, *out).exit_code == 0
    (file.with_name("ran")).unlink()
    result = retain("run", "--resume", *out)
    assert refused(result, f"names the code file {file}", f"--model {spec}")
    assert not file.with_name("ran").exists()
    assert retain("run", "--resume", "--model", spec, *out).exit_code == 0
    assert file.with_name("ran").exists()


def test_nor_which_code_makes_the_tasks(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from pathlib import Path\nfrom retain.tasks import load_tasks\n"
        "def made():\n    Path(__file__).with_name('ran').touch()\n"
        "    return load_tasks('digits', samples_per_class=8)\n"
    )
    spec, out = f"{file}:made", ("--out", tmp_path / "out")
    few = ("--methods", "finetune", "--batch-size", 8, "--epochs", 1)
    assert retain("run", "--tasks", spec, *few, *out).exit_code == 0
    file.with_name("ran").unlink()
    result = retain("run", "--resume", *out)
    assert refused(result, f"names the code file {file}", f"--tasks {spec}")
    assert not file.with_name("ran").exists()
    assert retain("run", "--resume", "--tasks", spec, *out).exit_code == 0


def test_a_study_does_not_either(tmp_path):
    file, spec = with_code(tmp_path / "code")
    out = ("--out", tmp_path / "out")
    few = ("--samples-per-class", 8, "--batch-size", 8)
    study = ("study", "adaptation", "--data", "digits", "--quick", "--epochs", 1, *few)
    assert retain(*study, "--model", spec, *out).exit_code == 0
    file.with_name("ran").unlink()
    assert refused(retain("study", "adaptation", "--resume", *out), "names the code file")
    assert not file.with_name("ran").exists()
    assert retain("study", "adaptation", "--resume", "--model", spec, *out).exit_code == 0
    result = retain("study", "adaptation", "--resume", "--epochs", 3, *out)
    assert refused(result, "--epochs would be ignored")


@pytest.mark.parametrize("where", ["made", "file"])
def test_a_model_file_that_ends_the_process_is_an_error(tmp_path, where):
    ends = "    sys.exit(0)\n" if where == "made" else "    pass\nsys.exit(0)\n"
    (tmp_path / "ends.py").write_text(f"import sys\ndef made():\n{ends}")
    result = retain(*TINY, "--model", f"{tmp_path / 'ends.py'}:made", "--out", tmp_path / "out")
    assert refused(result, "SystemExit: 0")
    with pytest.raises(ConfigError, match="SystemExit"):
        build_model(f"{tmp_path / 'ends.py'}:made", input_shape=(1, 8, 8), seed=0)


@pytest.mark.parametrize("how", ["raise Own('x')", "raise GeneratorExit", "os._exit(0)"])
@pytest.mark.parametrize("where", ["made", "forward"])
def test_whatever_ends_a_command_is_no_silent_success(tmp_path, how, where):
    (tmp_path / "ends.py").write_text(
        "import os, torch\n"
        "class Own(BaseException): pass\n"
        "class Ends(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        {how if where == 'made' else 'pass'}\n"
        "        self.body = torch.nn.Linear(64, 8)\n"
        "        self.head = torch.nn.Linear(8, 2)\n"
        "    def forward(self, x):\n"
        "        if self.training and torch.is_grad_enabled():\n"
        f"            {how}\n"
        "        return self.head(self.body(x.flatten(1)))\n"
    )
    line = [*TINY, "--model", f"{tmp_path / 'ends.py'}:Ends", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "retain", *map(str, line)], capture_output=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert b"Error: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_model_that_ends_the_process_in_training_is_a_failed_run(tmp_path):
    (tmp_path / "ends.py").write_text(
        "import sys, torch\n"
        "class Ends(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = torch.nn.Linear(64, 8)\n"
        "        self.head = torch.nn.Linear(8, 2)\n"
        "    def forward(self, x):\n"
        "        if self.training and torch.is_grad_enabled():\n"
        "            sys.exit(0)\n"
        "        return self.head(self.body(x.flatten(1)))\n"
    )
    result = retain(*TINY, "--model", f"{tmp_path / 'ends.py'}:Ends", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "finetune, seed 0 failed: SystemExit: 0 (ends.py" in result.stderr


def test_a_network_that_is_its_head_alone_is_refused(tmp_path):
    (tmp_path / "head.py").write_text(
        "from torch import nn\n"
        "def made():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n"
    )
    with pytest.raises(ModelError, match="nothing to learn before its head '1'"):
        build_model(f"{tmp_path / 'head.py'}:made", input_shape=(1, 8, 8), seed=0)


# ---- names ----

NAMES = ["[red]", "$5_$10", "[bold red]x", ":smile:", "\x1b[2Jx", "caf\udce9", "n" * 120, "a|b"]


@pytest.fixture(scope="module")
def oddly_named(tmp_path_factory):
    """A folder of images whose classes have odd names."""
    root = tmp_path_factory.mktemp("odd") / "set"
    for split in ("train", "test"):
        for number, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for shade in range(3):
                image = Image.new("RGB", (12, 12), (30 * number, 9 * shade, 60))
                image.save(folder / f"{shade}.png")
    return root


def test_names_come_out_as_text_and_cost_no_results(oddly_named, tmp_path):
    out = tmp_path / "out [/y]"
    line = ["run", "--tasks", f"folders:[/t]={oddly_named},$5_$10={oddly_named}", "--model", "cnn",
            "--image-size", 8, "--batch-size", 4, "--epochs", 1, "--methods", "finetune",
            "--title", "[/z] :smile: \x1b[2J $5_$10", "--out", out]  # fmt: skip
    result = retain(*line)
    assert result.exit_code in (0, 1), result.output  # 1: the page could not be made
    assert "Traceback" not in result.output
    assert "[/z] :smile: \\x1b[2J" in result.stdout, result.stderr
    assert "[/t] learned" in result.stderr
    assert "\x1b[2J" not in result.output
    (record,) = json.loads((out / "results.json").read_text())["runs"]
    assert record["status"] == "done"
    assert {*record["accuracy_by_class"]["[/t]"]} == {*NAMES}


def test_a_page_that_fails_costs_no_results(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("made to fail")

    monkeypatch.setattr(report, "write", broken)
    result = retain(*TINY, "--out", tmp_path)
    assert result.exit_code == 1
    assert "The report could not be made: ZeroDivisionError" in result.stderr
    assert f"retain report {tmp_path}" in result.stderr
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["done", "done"]


# ---- at hand ----


def test_python_m_retain_is_retain_also_where_it_is_not_installed(tmp_path):
    shutil.copytree(Path(report.__file__).parents[1], tmp_path / "retain")
    hide = "import importlib.metadata as m\ndef version(_):\n    raise m.PackageNotFoundError\n"
    (tmp_path / "sitecustomize.py").write_text(f"{hide}m.version = version\n")
    done = subprocess.run(
        [sys.executable, "-c", "import retain; print(retain.__version__)\n"
         "import sys, runpy; sys.argv = ['retain', 'run', '--help']\n"
         "runpy.run_module('retain', run_name='__main__')"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0.0.0+source" in done.stdout
    assert "retain run" in done.stdout
