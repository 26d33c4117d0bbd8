import json
import re
import subprocess
import sys

import pytest
import torch
import typer
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from retain import MAS, report
from retain.cli.app import app
from retain.importance import Importance

TINY = [
    "run",
    "--tasks",
    "digits",
    "--methods",
    "finetune,mas",
    "--samples-per-class",
    "8",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--device",
    "cpu",
]


def retain(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *messages):
    """One line of error, an exit code of 2, and no traceback."""
    assert result.exit_code == 2, result.output
    text = result.stderr
    assert "Traceback" not in text
    for message in messages:
        assert message in text, text
    return True


@pytest.mark.parametrize("command", ["run", "demo", "report", "importance", "inspect"])
def test_help_answers_with_an_example(command):
    result = retain(command, "--help")
    assert result.exit_code == 0
    assert f"retain {command}" in re.sub(r"\s+", " ", result.output)
    assert "Example" in result.output


def test_help_names_every_command():
    output = retain("--help").output
    for command in ("run", "demo", "report", "importance", "inspect"):
        assert command in output


COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_left_out_has_a_default_that_can_be_read(command):
    """A default goes through the same parser as what a user writes."""
    context = COMMANDS[command].make_context(command, [], resilient_parsing=True)
    for parameter in COMMANDS[command].params:
        default = parameter.get_default(context)
        if default is not None:
            parameter.process_value(context, default)


def test_run_then_report(tmp_path):
    result = retain(*TINY, "--out", tmp_path, "--title", "a title")
    assert result.exit_code == 0, result.output
    assert "FineTune" in result.stdout
    assert "MAS" in result.stdout
    assert "task 1/5" not in result.stdout  # progress goes to standard error
    assert (tmp_path / "report.html").exists()
    assert json.loads((tmp_path / "results.json").read_text())["config"]["title"] == "a title"
    (tmp_path / "report.html").unlink()
    assert retain("report", tmp_path).exit_code == 0
    assert (tmp_path / "report.html").exists()


def test_options_reach_the_config(tmp_path):
    result = retain(
        *TINY, "--out", tmp_path, "--seeds", "3,4", "--strength", "mas=0.5:2", "--form", "gradient",
        "--importance-on", "train+test", "--lr", "0.1", "--optimizer", "sgd", "--batch-norm",
        "moving", "--set", "mas.form=proximal", "--classes-per-task", "5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "results.json").read_text())["config"]
    expected = {
        "tasks": "digits", "methods": ["finetune", "mas"], "seeds": [3, 4], "epochs": 1,
        "strengths": {"mas": [0.5, 2.0]}, "forms": ["gradient"], "importance_on": ["train+test"],
        "lr": 0.1, "optimizer": "sgd", "batch_norm": "moving", "classes_per_task": 5,
        "options": {"mas": {"form": "proximal"}}, "samples_per_class": 8, "batch_size": 8,
        "scenario": "task-incremental", "quick": False,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == 2 * (1 + 2)


def test_resume_needs_no_options_and_refuses_others(tmp_path):
    assert retain(*TINY, "--out", tmp_path).exit_code == 0
    before = (tmp_path / "results.json").read_bytes()
    assert retain("run", "--resume", "--out", tmp_path).exit_code == 0
    assert retain(*TINY, "--resume", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "results.json").read_bytes() == before
    result = retain("run", "--resume", "--epochs", 3, "--out", tmp_path)
    assert refused(result, "another config", "epochs: 1 → 3")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "finetun"], "Did you mean 'finetune'"),
        (["--tasks", "digit"], "Did you mean 'digits'"),
        (["--model", "mpl"], "Did you mean 'mlp'"),
        (["--strength", "finetune=1"], "finetune has no strength"),
        (["--strength", "mas=x"], "--strength has 'mas=x'"),
        (["--strength", "maas=1"], "Did you mean 'mas'"),
        (["--methods", "finetune", "--strength", "1"], "none of the methods has a strength"),
        (["--seeds", "a"], "expected whole numbers"),
        (["--classes-per-task", "11"], "classes_per_task is 11, but there are 10 classes"),
        (["--set", "mas.lambda=1"], "mas has no option 'lambda'"),
        (["--scenario", "class-incremental"], "scenario"),
        (["--batch-size", "4000"], "Fewer training samples than a batch of 4000"),
        (["--device", "tpu9"], "The device 'tpu9' cannot be used"),
        (["--tasks", "folders:a=/nowhere,b=/nowhere"], "/nowhere"),
        (["--tasks", "fashion-mnist=/nowhere"], "/nowhere"),
        (["--weights", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--resume"], "There is no run to resume"),
    ],
)
def test_bad_input_is_one_line(tmp_path, given, message):
    assert refused(retain(*TINY, "--out", tmp_path / "out", *given), message)
    assert not (tmp_path / "out" / "results.json").exists()


def pressed(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_ctrl_c_while_the_report_is_made_costs_no_results(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(report, "write", pressed)
        result = retain(*TINY, "--out", tmp_path)
    assert result.exit_code == 130
    assert f"make it with: retain report {tmp_path}" in result.stderr
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["done", "done"]
    assert retain("report", tmp_path).exit_code == 0


def test_tasks_are_asked_for(tmp_path):
    assert refused(retain("run", "--out", tmp_path), "Which tasks?")


def test_an_existing_run_is_not_overwritten(tmp_path):
    assert retain(*TINY, "--out", tmp_path).exit_code == 0
    assert refused(retain(*TINY, "--out", tmp_path), "nothing is overwritten", "--resume")


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    assert refused(retain(*TINY, "--out", tmp_path / "file" / "out"), "Nothing was trained")


def test_warnings_are_told_once_and_in_words(tmp_path, photos):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        folder = tmp_path / "set" / name
        folder.mkdir(parents=True)
        for photo in photos.rglob("*.png"):
            Image.open(photo).convert("L").save(folder / photo.name)
    result = retain(
        "run", "--tasks", f"folders:a={tmp_path / 'set'}", "--model", "cnn", "--image-size", 16,
        "--batch-size", 4, "--epochs", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr.count("20 of 20 images are not RGB") == 1
    assert "Note: a: 20 of 20" in result.stderr
    assert "UserWarning" not in result.stderr


def test_a_failed_run_is_told_and_is_an_exit_code_of_one(tmp_path):
    result = retain(*TINY, "--out", tmp_path, "--lr", "1e30", "--optimizer", "sgd")
    assert result.exit_code == 1
    assert "finetune, seed 0 failed: The loss of finetune became" in result.stderr


def test_a_report_of_nothing(tmp_path):
    assert refused(retain("report", tmp_path), "results.json")


# ---- importance and inspect ----


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder.parent


@pytest.fixture
def model(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def made():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))\n"
    )
    return f"{tmp_path / 'mine.py'}:made"


def test_importance_of_ones_own_model(tmp_path, photos, model):
    file = tmp_path / "omega.safetensors"
    result = retain("importance", model, "--data", photos, "--out", file, "--image-size", 16)
    assert result.exit_code == 0, result.output
    omega = Importance.load(file)
    assert omega.samples == 5
    assert {name: tuple(o.shape) for name, o in omega.items()} == {
        "0.weight": (4, 3, 3, 3), "0.bias": (4,), "4.weight": (2, 4), "4.bias": (2,)
    }  # fmt: skip
    looked = retain("inspect", file, "--plot", tmp_path / "omega.png")
    assert looked.exit_code == 0, looked.output
    assert "0.weight" in looked.stdout
    assert (tmp_path / "omega.png").stat().st_size > 1000


def test_local_importance_of_some_images(tmp_path, photos, model):
    file = tmp_path / "omega.safetensors"
    result = retain("importance", model, "--data", photos, "--out", file, "--image-size", 16,
                    "--local", "--max-samples", 3, "--batch-size", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    omega = Importance.load(file)
    assert omega.samples == 3
    assert "4.weight" not in omega


def test_inspect_a_memory(tmp_path):
    network = nn.Linear(3, 2)
    MAS(network, strength=2.5).observe(torch.randn(4, 3)).consolidate().save(tmp_path / "m.st")
    result = retain("inspect", tmp_path / "m.st")
    assert result.exit_code == 0, result.output
    for said in ("MAS", "2.5", "weight", "4 samples"):
        assert said in result.stdout


def test_importance_of_nothing(tmp_path, model):
    out = ("--out", tmp_path / "o.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(retain("importance", model, "--data", empty, *out), "holds no image")
    assert refused(retain("importance", model, "--data", tmp_path / "no", *out), "not a folder")
    assert refused(retain("importance", "resnet8", "--data", empty, *out))


@pytest.mark.parametrize("file", ["nowhere/o.safetensors", "photos"])
def test_importance_that_could_not_be_written_is_not_computed(
    tmp_path, photos, model, file, monkeypatch
):
    monkeypatch.setattr(MAS, "observe", lambda *_, **__: pytest.fail("computed"))
    result = retain("importance", model, "--data", photos, "--out", tmp_path / file)
    assert refused(result, "Nothing was computed")


def test_inspect_what_is_none_of_ours(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    assert refused(retain("inspect", tmp_path / "x.safetensors"), "x.safetensors")
    assert refused(retain("inspect", tmp_path / "gone"), "does not exist")


def test_without_the_extra_it_says_which_to_install():
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "from retain.cli import main\n"
        "main()"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "retain[study]"' in done.stderr
    assert "Traceback" not in done.stderr
