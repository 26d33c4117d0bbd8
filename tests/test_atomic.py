"""The one way in which files are written: whole or not at all, with the permissions of any file."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import retain
from retain import atomic
from retain.cli.app import app
from retain.errors import FileError
from tests.test_imports import SOURCE

POSIX = pytest.mark.skipif(os.name == "nt", reason="permissions and links of POSIX")


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_over(path, process, token="0123abcd"):
    """What a process that was killed while it wrote `path` leaves."""
    folder = path.with_name(f".{path.name}.{atomic._machine()}-{process}-{token}.tmp")
    folder.mkdir()
    (folder / path.name).write_bytes(b"half")
    return folder


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@POSIX
def test_permissions_are_the_umask_s_and_stay(tmp_path):
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        atomic.write(path, "ü")
        assert (mode(path), path.read_bytes()) == (0o640, "ü".encode())
        path.chmod(0o604)
        atomic.write(path, b"again")
        assert (mode(path), path.read_bytes()) == (0o604, b"again")
    finally:
        os.umask(before)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [True, False])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error, there):
    path = tmp_path / "a.txt"
    if there:
        path.write_text("before")

    def fail():
        with atomic.replacing(path) as unfinished:
            unfinished.write_bytes(b"half")
            raise error

    with pytest.raises(FileError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        fail()
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"Cannot write {path}: No space left on device. What was there is untouched."
        )
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"] * there


@POSIX
def test_a_link_is_written_through_also_one_that_leads_to_nothing_yet(tmp_path):
    (tmp_path / "b").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("b") / "new")
    atomic.write(link, "one")
    atomic.write(link, "two")
    assert link.is_symlink()
    assert (tmp_path / "b" / "new").read_text() == "two"


@POSIX
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.symlink_to("gone/file"), "it is a link to .*gone/file, and there is no"),
        (lambda p: p.symlink_to(p.name), "it is a link that leads to itself"),
        (lambda p: p.mkdir(), "that is a folder"),
        (lambda p: p.symlink_to("/"), "it is a link to /, and that is a folder"),
        (lambda p: p.symlink_to(os.devnull), "it is a link to /dev/null, and that is a device"),
        (lambda p: os.mkfifo(p), "that is a device or a pipe"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_named(tmp_path, make, said):
    path = tmp_path / "a"
    make(path)
    with pytest.raises(FileError, match=f"Cannot write .*/a: {said}"):
        atomic.write(path, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_device_is_not_replaced_by_a_file():
    with pytest.raises(FileError, match="device or a pipe"):
        atomic.write(Path(os.devnull), "x")
    assert not Path(os.devnull).is_file()


@POSIX
@pytest.mark.skipif(os.name != "nt" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_to_stays(tmp_path):
    path = tmp_path / "a"
    path.write_text("kept")
    path.chmod(0o444)
    with pytest.raises(FileError, match="may not be written to"):
        atomic.write(path, "x")


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "a[1]*.txt"
    dead = gone()
    removed = [left_over(path, dead), left_over(path, os.getpid())]  # a number is used again
    kept = [left_over(path, os.getppid()), left_over(tmp_path / "b", dead)]
    for name in (".a[1]*.txt.tmp", ".a[1]*.txt.old.tmp", ".a[1]*.txt.12-34-56.tmp"):
        mine = tmp_path / name
        mine.write_text("somebody's own")
        os.utime(mine, (0, 0))
        kept.append(mine)
    atomic.write(path, "x")
    assert not any(one.exists() for one in removed)
    assert all(one.exists() for one in kept)
    atomic.remove_left_over(tmp_path)
    assert [one for one in kept if not one.exists()] == [kept[1]], "what others left of b"


def test_an_unfinished_write_of_another_machine_is_given_up_after_a_day(tmp_path):
    path = tmp_path / "a"
    fresh, old = (tmp_path / f".a.00000000-1-0000000{i}.tmp" for i in range(2))
    for folder in (fresh, old):
        folder.mkdir()
        (folder / "a").write_text("half")
    for one in (old, old / "a"):
        os.utime(one, (0, 0))
    os.utime(fresh, (0, 0))  # begun long ago, and still written to
    atomic.write(path, "x")
    assert fresh.exists()
    assert not old.exists()


def written_by_everyone(folder):
    """What the writers of the package write, by what it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(8, 4)
    memory = retain.MAS(model).observe([x], progress=False)
    omega = memory.observed
    card = retain.passport(model, [x, x], name="m", progress=False)
    memory.consolidate()
    return {
        "memory": (memory.save, folder / "memory.safetensors"),
        "importance": (omega.save, folder / "omega.safetensors"),
        "picture": (omega.plot, folder / "omega.png"),
        "picture without a suffix": (omega.plot, folder / "omega"),
        "passport": (card.save, folder / "passport.safetensors"),
        "page": (card.write_page, folder / "passport.html"),
    }


@POSIX
def test_everything_is_written_this_way(tmp_path, monkeypatch):
    """New and again, with the permissions of any file; a rename that fails leaves it as it was."""
    pytest.importorskip("matplotlib")
    before = os.umask(0o026)
    try:
        for what, (save, path) in written_by_everyone(tmp_path).items():
            save(path)
            assert mode(path) == 0o640, what
            path.chmod(0o606)
            save(path)
            assert mode(path) == 0o606, what
            assert path.stat().st_size > 100, what
    finally:
        os.umask(before)

    def full(*_paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for what, (save, path) in written_by_everyone(tmp_path).items():
        whole = path.read_bytes()
        with pytest.raises(FileError, match="No space left on device"):
            save(path)
        assert path.read_bytes() == whole, what
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


WRITES = {"write_text", "write_bytes", "savefig", "save_file"}
# Mapped into memory, its name taken away at once; and into memory only.
OWN_WAY = {Path("memory/storage.py"): "save_file"}


def test_no_writer_has_a_way_of_its_own():
    """Whatever writes a file does so within `atomic.replacing`, or to what is no path."""
    wrong = []
    for path in SOURCE.rglob("*.py"):
        inside = path.relative_to(SOURCE)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        within = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            and any("replacing" in ast.unparse(item) for item in block.items)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or id(node) in within:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            to_memory = name == "savefig" and ast.unparse(node.args[0]) == "text"
            opens = name == "open" and any(
                isinstance(a, ast.Constant) and str(a.value)[:1] in "wax" and a.value
                for a in [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
            )
            if (name in WRITES and OWN_WAY.get(inside) != name and not to_memory) or opens:
                wrong.append(f"{inside}:{node.lineno} {name}")
    assert not wrong


@POSIX
@pytest.mark.parametrize(
    ("leads", "said"),
    [
        ("gone/x", "is a link to .*gone/x, (which does not exist|and there is no folder)"),
        ("a", "a link that leads to itse"),
    ],
)
def test_links_that_lead_nowhere_are_told_as_such(tmp_path, leads, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").symlink_to(leads)
    runner = CliRunner()
    few = ["run", "--tasks", "digits", "--methods", "finetune"]
    lines = [
        [*few, "--out", "a"],
        [*few, "--resume", "--out", "a"],
        [*few, "--model", "a:made", "--out", "b"] if leads == "gone/x" else ["inspect", "a"],
        ["inspect", "a"],
        ["study", "table3", "--data", "digits", "--out", "a"],
        ["demo", "--out", "a"],
        ["run", "--tasks", "folders:x=a,y=a", "--out", "b"],
        ["run", "--tasks", "digits", "--weights", "a", "--out", "b"],
        ["importance", "resnet18", "--data", ".", "--out", "a"],
    ]
    Path("a.py").symlink_to(leads)
    for line in lines:
        done = runner.invoke(app, [word.replace("a:made", "a.py:made") for word in line])
        assert done.exit_code == 2, (line, done.exception)
        assert re.search(said, done.stderr.replace("\n", " ")), (line, done.stderr)
    with pytest.raises(FileError, match=said):
        retain.load("a", nn.Linear(2, 2))
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "a.py"}
