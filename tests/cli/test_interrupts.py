"""Ctrl-C, whenever it is pressed: a sentence, the exit code 130, nothing lost and nothing left."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import typer
from torch import _VF, nn
from torch.autograd.graph import saved_tensors_hooks

from retain import atomic, starting
from retain import borrowed as borrowed_module
from retain.borrowed import borrowed
from retain.cli.speaking import plainly
from retain.experiment import Results
from retain.interrupts import uninterrupted
from tests.cli.commands import started

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
RUN = (
    "run", "--tasks", "digits", "--methods", "finetune,mas", "--samples-per-class", "4",
    "--batch-size", "4", "--epochs", "2", "--device", "cpu",
)  # fmt: skip


def press(process):
    os.killpg(process.pid, signal.SIGINT)


def members(group):
    """The processes of a group that are still there."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True)
    lines = [line.split() for line in found.stdout.splitlines()]
    return [pid for pid, its, stat in lines if int(its) == group and not stat.startswith("Z")]


def test_while_it_is_imported():
    """At whatever moment after Python itself has started."""
    for seconds in (0.1, 0.3, 0.6):
        with started("inspect", "nowhere.safetensors") as process:
            time.sleep(seconds)
            press(process)
            assert (process.stderr.read(), process.wait()) == ("Interrupted.\n", 130), seconds


def test_what_hears_it_first_is_imported_first_and_imports_next_to_nothing():
    code = f"import sys; sys.path.insert(0, {str(Path(starting.__file__).parent)!r}); " + (
        "before = set(sys.modules); import starting; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"typing", "contextlib", "re", "torch"} & set(done.stdout.split())


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_while_it_trains(tmp_path, workers):
    """Pressed twice, since whoever is impatient does; the command that it names goes on."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    with started(*RUN, "--out", out, "--workers", workers) as process:
        for line in process.stderr:
            if "task 3/5" in line:
                break
        press(process)
        time.sleep(0.01)
        press(process)
        said = process.stderr.read()
        assert process.wait() == 130
    assert "Traceback" not in said
    assert said.endswith(
        f"Interrupted. What was finished is in {out}. Go on with: retain run --resume --out {out}\n"
    )
    deadline = time.monotonic() + 10
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not members(process.pid)
    assert not (out / ".lock").exists()
    for words in (["run", "--resume", "--out", out], [*RUN, "--out", whole]):
        with started(*words) as process:
            said = process.stderr.read()
            assert process.wait() == 0, said
    numbers = [[run.accuracy for run in Results.read(folder).runs] for folder in (out, whole)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (KeyboardInterrupt(), "Interrupted."),
        (KeyboardInterrupt("by [bold]somebody[/]"), "Interrupted. by [bold]somebody[/]"),
        (KeyboardInterrupt("Interrupted. Go on."), "Interrupted. Go on."),
        (typer.Abort(), "Interrupted."),  # pressed while a question is asked
    ],
)
def test_whatever_it_says(stop, said, capsys):
    def command():
        raise stop

    with pytest.raises(typer.Exit) as ended:
        plainly(command)()
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == f"{said}\n"


@pytest.fixture
def handler():
    """Sets the handler of Ctrl-C, and puts back what was there."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda how: signal.signal(signal.SIGINT, how)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fresh():
    """`retain.starting` of its own, whose last Ctrl-C is none of another test's."""
    spec = importlib.util.spec_from_file_location("starting", starting.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_who_ignores_it_is_not_made_to_hear_it(handler, fresh):
    handler(signal.SIG_IGN)
    fresh.quiet_interrupt()
    assert not fresh.loud_interrupt()
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_who_hears_it_himself_does_so_after_the_write(handler):
    heard = []
    handler(lambda *how: heard.append(how))
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        assert not heard
    assert heard[0][0] == signal.SIGINT


def test_what_ends_the_work_is_not_interrupted_itself(handler, fresh, monkeypatch):
    handler(signal.default_int_handler)
    fresh.quiet_interrupt()
    assert fresh.loud_interrupt()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # the same press, as far as anybody knows
    fresh.quiet_interrupt()
    os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(fresh, "AGAIN", 0)
    fresh.loud_interrupt()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


# ---- in the library: whatever is begun is ended ----


def pressed_at(line, act, *modules):
    """Whether there was an n-th line of these modules in `act`, before which Ctrl-C was pressed."""
    inside, count = {module.__file__ for module in modules}, 0

    def trace(frame, event, _value):
        nonlocal count
        if frame.f_code.co_filename not in inside:
            return None
        if event == "line":
            count += 1
            if count == line:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count >= line


def test_a_borrowed_model_is_given_back_at_every_line(handler):
    handler(signal.default_int_handler)
    patched = (saved_tensors_hooks, "__enter__"), (saved_tensors_hooks, "__exit__"), (_VF, "lstm")
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).train()
    gradient = model[2].weight.grad = torch.ones(2, 3)
    before = [getattr(owner, name) for owner, name in patched], torch.get_rng_state()

    def act():
        with borrowed(model):
            model(torch.randn(4, 3))

    line = 1
    while pressed_at(line, act, borrowed_module):
        assert all(module.training for module in model.modules()), line
        assert model[2].weight.grad is gradient, line
        assert [getattr(owner, name) for owner, name in patched] == before[0], line
        assert torch.equal(torch.get_rng_state(), before[1]), line
        assert not model._forward_pre_hooks, line
        assert not borrowed_module.borrowing(), line
        assert torch._C._get_mkldnn_enabled() == torch.backends.mkldnn.enabled
        line += 1
    assert line > 100
    assert not borrowed_module._found


def test_a_file_is_whole_and_nothing_is_left_at_every_line(handler, tmp_path):
    handler(signal.default_int_handler)
    path, line = tmp_path / "a", 1
    while pressed_at(line, partial(atomic.write, path, f"line {line}"), atomic):
        assert not path.exists() or path.read_text() in (f"line {line - 1}", f"line {line}"), line
        if not path.exists() or path.read_text() != f"line {line}":
            atomic.write(path, f"line {line}")
        atomic.write(tmp_path / "b", "another")
        atomic.remove_left_over(tmp_path)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b"], line
        line += 1
    assert line > 30
