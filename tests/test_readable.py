"""What is no file, or is larger than it can be: told in words, without waiting or growing."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import retain
from retain import files, readable, report
from retain.errors import FileError, InputError, RetainError
from retain.experiment import Results
from retain.memory.memory_file import read_importance
from retain.models.weights import load_weights, read_state
from retain.passports import Passport
from retain.studies.study_folder import recorded
from retain.tasks.idx import read_idx

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and devices of Unix")
READERS = {
    "load": lambda path: retain.load(path, nn.Linear(2, 2)),
    "importance": retain.Importance.load,
    "passport": Passport.load,
    "any": read_importance,
    "state": read_state,
    "report": report.table,
    "idx": lambda path: read_idx(path, 1),
}


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def circle(path):
    path.symlink_to(path.name)


ODD = {
    "is a pipe": pipe,
    "is a pipe, a socket or a device": endless,
    "is a link that leads to itself": circle,
    "is a folder": Path.mkdir,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("said", ODD)
def test_what_is_no_file_is_told_at_once(tmp_path, reader, said):
    path = tmp_path / "odd"
    ODD[said](path)
    if reader == "report" and path.is_dir():
        said = "There is no"
    with pytest.raises(FileError, match=said):
        READERS[reader](path)


@pytest.mark.parametrize("said", ODD)
def test_nor_where_a_folder_has_it(tmp_path, said):
    ODD[said](tmp_path / "results.json")
    ODD[said](tmp_path / "study.json")
    for read in (Results.read, recorded, report.table):
        with pytest.raises(FileError, match=said):
            read(tmp_path)


def test_a_file_that_may_not_be_read_is_told_of(tmp_path, monkeypatch):
    path = tmp_path / "closed"
    path.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert readable.why_not(path) == "cannot be opened: Permission denied"
    assert readable.why_not(tmp_path / "none") == "does not exist"


def test_a_file_of_text_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "results.json").open("wb") as file:
        file.truncate(readable.MOST_TEXT + 1)
    with pytest.raises(FileError, match="is larger than 1,074 MB"):
        Results.read(tmp_path)


def test_a_file_of_holes_is_not_gone_through(tmp_path):
    path, size = tmp_path / "holes.safetensors", 1 << 42
    header = json.dumps(
        {
            "__metadata__": {files.MARK: json.dumps({"kind": "importance", "format": 2})},
            "w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
        }
    ).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("no file may be so large here")
    for read in (retain.Importance.load, read_state):
        with pytest.raises(FileError, match="were ever written: it is truncated"):
            read(path)


# ---- what says that it is large ----


def test_a_passport_that_cannot_fit_is_refused_with_the_estimate(tmp_path):
    side = 1 << 22
    ones = torch.ones(side, dtype=torch.bfloat16)
    card = {
        "name": "n", "model": "m", "data": "d", "parameters": 1, "samples": 1, "bytes": 1,
        "seconds": 1.0, "weights": {"w": "x"}, "routes": {}, "shapes": {"w": [side, side]},
        "stability": None, "fidelity": None, "layers": [],
    }  # fmt: skip
    path = tmp_path / "passport.safetensors"
    files.write(path, "passport", {"rows/w": ones, "columns/w": ones}, card)
    for read in (Passport.load, read_importance, lambda p: retain.load(p, nn.Linear(2, 2))):
        with pytest.raises(FileError, match="takes 70,369 GB, and this machine has"):
            read(path)
    few = {"rows/w": torch.ones(2), "columns/w": torch.ones(0)}
    files.write(path, "passport", few, {**card, "shapes": {"w": [2**62, 4, 0]}})
    for read in (Passport.load, read_importance, lambda p: retain.load(p, nn.Linear(2, 2))):
        with pytest.raises(FileError, match="expected a shape for each parameter"):
            read(path)


def test_weights_that_swell_are_refused(tmp_path):
    swelling = {"w": torch.zeros(1).expand(10**6, 10**6)}
    torch.save(swelling, tmp_path / "wide.pt")
    with pytest.raises(FileError, match="its tensors take 4,000 GB, and this machine has"):
        read_state(tmp_path / "wide.pt")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("packed/data.pkl", pickle.dumps({}))
        archive.writestr("packed/data/0", bytes(1 << 22))
    with pytest.raises(FileError, match=r"0.00419 GB would come out of"):
        read_state(tmp_path / "packed.pt")
    parts = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)  # an archive on two disks
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)
    (tmp_path / "half.pt").write_bytes(parts + end)
    with pytest.raises(FileError, match="is damaged, or cut off"):
        read_state(tmp_path / "half.pt")


# ---- weights that are none ----


def test_a_flipped_bit_in_a_file_of_weights_is_noticed(tmp_path):
    state = {"weight": torch.ones(64, 64)}
    torch.save(state, tmp_path / "one.pt")
    files.write_weights(tmp_path / "one.safetensors", state)
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        at = content.index(torch.ones(64).numpy().tobytes())
        content[at + 2] ^= 64
        path.write_bytes(bytes(content))
        with pytest.raises(FileError, match="is damaged"):
            read_state(path)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (torch.ones(2, 2).to_sparse(), "weight is not dense"),
        (torch.ones(2, 2, device="meta"), "weight is on the meta device"),
        (torch.ones(2, 2, dtype=torch.complex64), "weight .file complex64, model float32"),
        (torch.ones(2, 2, dtype=torch.int8), "weight .file int8, model float32"),
        (torch.full((2, 2), torch.nan), r"NaN or infinite \(1\): weight"),
        (torch.full((2, 2), 1e300, dtype=torch.float64), r"NaN or infinite \(1\): weight"),
    ],
)
def test_a_model_does_not_start_from_what_are_no_weights_of_it(tmp_path, odd, said):
    torch.save({"weight": odd, "bias": torch.ones(2)}, tmp_path / "odd.pt")
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(FileError, match=said):
        load_weights(model, tmp_path / "odd.pt")
    assert torch.equal(model.weight, before)


def test_names_that_are_none_do_not_take_the_place_of_others(tmp_path):
    torch.save({1: torch.ones(2), "1": torch.zeros(2)}, tmp_path / "odd.pt")
    with pytest.raises(FileError, match="1 is no name"):
        read_state(tmp_path / "odd.pt")


def test_repair_and_forecast_of_odd_tensors():
    model = nn.Linear(3, 2)
    memory = retain.MAS(model).observe(torch.randn(4, 3), progress=False).consolidate()
    state = model.state_dict()
    moved = {name: tensor + 1 for name, tensor in state.items()}
    for odd in (
        state["weight"].to_sparse(),
        state["weight"].double() + 1e300,
        nn.LazyLinear(2).weight,
    ):
        with pytest.raises(RetainError):
            retain.repair({**state, "weight": odd}, moved, memory)
    eight = {**state, "weight": state["weight"].to(torch.float8_e4m3fn)}
    assert memory.forecast(eight).change >= 0
    with pytest.raises(InputError, match="without a shape yet there"):
        memory.forecast(nn.LazyLinear(2))
    for amount in (1e308, 1e-320):
        mended = retain.repair(state, moved, retain.Importance({"weight": torch.eye(2, 3)}, 1),
                               amount=amount)  # fmt: skip
        assert all(bool(tensor.isfinite().all()) for tensor in mended.values())
