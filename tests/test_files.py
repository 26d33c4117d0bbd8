"""Files: whole or not at all, and refused when they are not what they should be."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from retain import files
from retain.errors import FileError, InputError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones((), dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


def write(path, **header):
    files.write(path, "memory", TENSORS, {"method": "MAS", **header})


def test_what_is_written_is_read(path):
    write(path, samples=3)
    tensors, header = files.read(path, "memory")
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[n], t) and tensors[n].dtype == t.dtype for n, t in TENSORS.items()
    )
    assert header["samples"] == 3
    assert header["format"] == files.VERSION
    assert header["torch"] == torch.__version__
    assert [p.name for p in path.parent.iterdir()] == [path.name], "something was left beside it"


def test_views_transposes_and_shared_tensors_are_written_whole(path):
    base = torch.arange(12.0).reshape(3, 4)
    given = {"t": base.t(), "row": base[1], "same": base, "again": base}
    files.write(path, "memory", given, {})
    tensors, _ = files.read(path, "memory")
    assert all(torch.equal(tensors[name], t) for name, t in given.items())


@pytest.mark.parametrize("stage", ["write", "flush", "rename", "interrupt"])
def test_the_existing_file_survives_a_failed_write(path, monkeypatch, stage):
    write(path, samples=1)
    before = path.read_bytes()

    def fails(*_args, **_kwargs):
        raise KeyboardInterrupt if stage == "interrupt" else OSError(28, "No space left on device")

    if stage == "write":
        monkeypatch.setattr(files, "save_file", fails)
    else:
        monkeypatch.setattr(os, "replace" if stage == "rename" else "fsync", fails)
    with pytest.raises(KeyboardInterrupt if stage == "interrupt" else FileError) as caught:
        write(path, samples=2)
    if stage != "interrupt":
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name], "something was left beside it"


def test_a_link_is_written_through(tmp_path):
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    write(real)
    link.symlink_to(real)
    write(link, samples=7)
    assert link.is_symlink()
    assert files.read(real, "memory")[1]["samples"] == 7


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileError, match="Cannot write"):
        write(tmp_path / "nowhere" / "m.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, -1])
def test_a_truncated_file(path, keep):
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(FileError, match="truncated, or not a safetensors file"):
        files.read(path, "memory")


def test_files_of_others(path):
    with pytest.raises(FileError, match="does not exist"):
        files.read(path, "memory")
    with pytest.raises(FileError, match="is a folder"):
        files.read(path.parent, "memory")
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(FileError, match="not one that retain wrote"):
        files.read(path, "memory")
    for damaged in ("{", "[]", "{}", json.dumps({"kind": "memory", "format": "new"})):
        save_file({"a": torch.ones(2)}, path, metadata={files.MARK: damaged})
        with pytest.raises(FileError, match="not one that retain wrote"):
            files.read(path, "memory")
    torch.save({"a": torch.ones(2)}, path)  # a pickle is never opened
    with pytest.raises(FileError, match="not a safetensors file"):
        files.read(path, "memory")


def test_a_newer_version(path, monkeypatch):
    monkeypatch.setattr(files, "VERSION", files.VERSION + 1)
    write(path)
    monkeypatch.undo()
    with pytest.raises(FileError, match=r"has format 3; .* up to 2\. Upgrade retain"):
        files.read(path, "memory")


def test_another_kind_says_how_to_read_it(path):
    write(path)
    with pytest.raises(FileError, match=r"holds a memory, not an importance.*retain\.load"):
        files.read(path, "importance")


def flipped(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << (position % 8)
    path.write_bytes(data)


def test_every_flipped_bit_is_noticed(path):
    """Every byte of a small file: refused, or not read as anything else than what was written."""
    write(path, samples=3)
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped(path, position)
        with pytest.raises(FileError):
            files.read(path, "memory")
        path.write_bytes(whole)
    assert files.read(path, "memory")[1]["samples"] == 3


def test_a_file_of_the_first_format_is_read_with_a_warning(path):
    head = {"kind": "memory", "format": 1, "method": "MAS"}
    save_file(TENSORS, path, metadata={"retain": json.dumps(head)})
    with pytest.warns(UserWarning, match="older version, without a digest"):
        tensors, _ = files.read(path, "memory")
    assert tensors.keys() == TENSORS.keys()


def test_a_file_that_lost_its_digest_is_refused(path):
    head = {"kind": "memory", "format": 2}
    save_file(TENSORS, path, metadata={"retain": json.dumps(head)})
    with pytest.raises(FileError, match="is damaged: its digest"):
        files.read(path, "memory")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"kind": "memory", "format": 1' + "0" * 5000 + "}", "[]", "null",
     '{"kind": 1}', '{"kind": "memory", "format": true}', '{"kind": "memory", "format": 2.0}'],
)  # fmt: skip
def test_headers_that_are_none_are_refused(path, text):
    save_file(TENSORS, path, metadata={"retain": text})
    with pytest.raises(FileError):
        files.read(path, "memory")


@pytest.mark.parametrize("name", ["", "a\0b", 3, None, b"x"])
def test_what_is_no_path_is_refused(name):
    with pytest.raises(InputError, match="path="):
        files.read(name, "memory")
    with pytest.raises(InputError, match="path="):
        files.write(name, "memory", TENSORS, {})


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_are_those_of_any_file_and_stay(path):
    before = os.umask(0o022)
    try:
        write(path)
        assert path.stat().st_mode & 0o777 == 0o644
        path.chmod(0o640)
        write(path)
        assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_what_killed_writes_left_is_removed_and_what_others_write_is_not(path):
    code = (
        "import sys, time, torch, retain.files as files\n"
        "import os; os.replace = lambda *a: (print('there', flush=True), time.sleep(60))\n"
        f"files.write({str(path)!r}, 'memory', {{'a': torch.ones(1000)}}, {{}})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline().strip() == b"there"
        writers[0].kill()
        writers[0].wait()
        assert len(list(path.parent.iterdir())) == 2
        write(path)
        left = [entry.name for entry in path.parent.iterdir() if entry != path]
        assert len(left) == 1
        assert f"-{writers[1].pid}-" in left[0]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(path, monkeypatch):
    """Its header is of one and its tensors of the next: no damage, so it is read again."""
    write(path, samples=1)
    opened, count = files.safe_open, 0

    def replaced_meanwhile(*args, **kwargs):
        nonlocal count
        count += 1
        before = opened(*args, **kwargs)
        if count > 2:
            return before
        other = {name: tensor + count for name, tensor in TENSORS.items()}
        files.write(path, "memory", other, {"method": "MAS", "samples": 1 + count})
        with before as first, opened(*args, **kwargs) as second:
            torn = {"metadata": first.metadata, "keys": first.keys, "get_tensor": second.get_tensor}
            return contextlib.nullcontext(SimpleNamespace(**torn))

    monkeypatch.setattr(files, "safe_open", replaced_meanwhile)
    tensors, header = files.read(path, "memory")
    assert (count, header["samples"]) == (3, 3)
    assert torch.equal(tensors["a.weight"], TENSORS["a.weight"] + 2)


def test_names_as_long_as_they_may_be(tmp_path):
    name = "ü" * 121 + ".safetensors"
    write(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
