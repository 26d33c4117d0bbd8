"""A folder belongs to one run at a time, and says whose it is."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial

import pytest

from retain.errors import ConfigError, FileError
from retain.experiment import Results, disk, run
from retain.experiment.disk import LOCK, OccupiedError, owned
from retain.experiment.progress import Watcher
from retain.experiment.run_folder import how_to_go_on
from retain.legible import visible

from .tiny import accuracies, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    run(tiny(methods=("finetune",)), out=folder, progress=False)
    return folder


def copied(folder, to):
    to.mkdir(parents=True)
    for path in folder.glob("*.json"):
        (to / path.name).write_bytes(path.read_bytes())
    return to


def hold(folder, ready):
    with owned(folder):
        ready.set()
        time.sleep(60)


def holder(folder):
    """A process that owns the folder."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(folder, ready))
    process.start()
    assert ready.wait(60)
    return process


def test_the_second_run_is_refused_and_a_killed_one_leaves_nothing_behind(finished, tmp_path):
    folder = copied(finished, tmp_path / "out")
    process = holder(folder)
    try:
        with pytest.raises(OccupiedError) as told:
            run(tiny(methods=("finetune",)), out=folder, resume=True, progress=False)
    finally:
        process.kill()
        process.join()
    assert f"process {process.pid} on {socket.gethostname()}, for " in str(told.value)
    assert "choose another folder with --out" in str(told.value)
    assert (folder / LOCK).exists()  # it was killed
    again = run(tiny(methods=("finetune",)), out=folder, resume=True, progress=False)
    assert accuracies(again) == accuracies(Results.read(finished))
    assert not (folder / LOCK).exists()


def test_two_threads_of_one_process_are_two_runs(tmp_path):
    with owned(tmp_path), pytest.raises(OccupiedError, match=str(os.getpid())), owned(tmp_path):
        pass
    with owned(tmp_path):
        pass


def test_a_run_that_begins_while_another_is_at_work_is_refused(tmp_path):
    folder, refusals = tmp_path / "out", []

    class Second(Watcher):
        def start(self, steps):
            try:
                run(tiny(methods=("finetune",)), out=folder, progress=False)
            except ConfigError as error:
                refusals.append(str(error))

    run(tiny(methods=("finetune",)), out=folder, progress=Second())
    (refusal,) = refusals
    assert "Another run is writing to" in refusal


@pytest.mark.parametrize("left", ["", "nonsense", "[1]", json.dumps([2**70, "x", 1e300])])
def test_a_lock_file_without_a_lock_is_taken_over(tmp_path, left):
    (tmp_path / LOCK).write_text(left)
    os.utime(tmp_path / LOCK, (0, 0))
    with owned(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())[0] == os.getpid()


@pytest.mark.parametrize("locks", [True, False])
def test_an_owner_on_another_host_counts_while_it_gives_signs_of_life(tmp_path, monkeypatch, locks):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "no locks")

    if not locks:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / LOCK).write_text(json.dumps([1, "elsewhere", time.time()]))
    said = r"process 1 on elsewhere.*or wait a minute"
    with pytest.raises(OccupiedError, match=said), owned(tmp_path):
        pass
    long_ago = time.time() - 2 * disk.SILENT
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    monkeypatch.setattr(disk, "BEAT", 0.01)
    with owned(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        for _ in range(500):
            time.sleep(0.01)
            if (tmp_path / LOCK).stat().st_mtime:
                break
        assert (tmp_path / LOCK).stat().st_mtime > long_ago


def test_where_the_file_system_has_no_locks_the_process_counts(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / LOCK).write_text(json.dumps([os.getpid(), socket.gethostname(), 0.0]))
    with pytest.raises(OccupiedError), owned(tmp_path):
        pass
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    (tmp_path / LOCK).write_text(json.dumps([int(ended.stdout), socket.gethostname(), 0.0]))
    with owned(tmp_path):
        pass


def test_records_of_other_jobs_are_refused(finished, tmp_path):
    folder = copied(finished, tmp_path / "out")
    content = json.loads((folder / "results.json").read_text())
    content["runs"][0]["seed"] = 7
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(FileError, match=r"does not hold the runs of its own config: runs\[0\]"):
        run(tiny(methods=("finetune",)), out=folder, resume=True, progress=False)


def test_a_folder_that_is_gone_is_not_said_to_hold_anything(finished, tmp_path):
    assert "--resume --out" in how_to_go_on("run", finished)
    said = how_to_go_on("run", tmp_path / "gone")
    assert "moved or removed" in said
    assert "without --resume" in said


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(FileError, match=r"is a folder, not a file") as told:
        Results.read(tmp_path)
    assert "damaged" not in str(told.value)
    assert "remove" not in str(told.value)


def test_what_a_terminal_would_obey_is_shown():
    assert visible("a\x1b[31mred\u202etxt\ttab\nline") == "a\\x1b[31mred\\u202etxt\ttab\nline"


def test_names_that_are_not_utf_8_come_back(tmp_path):
    config = tiny(methods=("finetune",), title="caf\udce9 [/x] $5_$10")
    run(config, out=tmp_path, progress=False)
    assert Results.read(tmp_path).config.title == config.title
    assert b"\\udce9" in (tmp_path / "results.json").read_bytes()


@pytest.mark.parametrize("seconds", [0.2, 1.0])
def test_ctrl_c_while_the_command_starts_is_a_word(seconds, tmp_path):
    command = [sys.executable, "-m", "retain", "run", "--tasks", "digits", "--epochs", "1000",
               "--out", str(tmp_path / "out")]  # fmt: skip
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whatever started the tests
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=hearing
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"Interrupted" in err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_was_removed_and_begun_anew_is_not_written_to(tmp_path, workers):
    """Neither the results of the run that is there now, nor its checkpoints, nor its lock."""
    config, out = tiny(methods=("finetune", "si"), seeds=(0, 1)), tmp_path / "out"
    begun = []

    class Removing(Watcher):
        def at(self, job, task):
            if not begun and (out / "results.json").exists():
                shutil.rmtree(out)
                out.mkdir()
                begun.append(stack.enter_context(owned(out)))
                (out / "results.json").write_text("another's")

    with ExitStack() as stack:
        with pytest.raises(FileError, match="what is there now is not this run's"):
            run(config, out=out, progress=Removing(), workers=workers)
        assert sorted(path.name for path in out.iterdir()) == [".lock", "results.json"]
        assert (out / "results.json").read_text() == "another's"
        begun[0].refuse_another()  # it still is that run's own
