"""Weights in a folder, in one file or in several with an index, and what is wrong with one."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import retain
from retain.cli.app import app
from retain.errors import FileError
from retain.models.weights import load_weights, read_state

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def shards(folder, state, *, files=("model-1-of-2.safetensors", "model-2-of-2.safetensors")):
    folder.mkdir()
    parts = [dict(list(state.items())[:2]), dict(list(state.items())[2:])]
    for name, part in zip(files, parts):
        save_file(part, folder / name)
    where = {key: name for name, part in zip(files, parts) for key in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_one_file_or_several_or_the_index_alone(tmp_path, model):
    state = model.state_dict()
    folder = shards(tmp_path / "several", state)
    (tmp_path / "one").mkdir()
    save_file(state, tmp_path / "one" / "model.safetensors")
    (tmp_path / "torch").mkdir()
    torch.save(state, tmp_path / "torch" / "pytorch_model.bin")
    for given in (folder, folder / INDEX, tmp_path / "one", tmp_path / "torch"):
        assert same(read_state(given), state), given
    other = copy.deepcopy(model)
    nn.init.zeros_(other[0].weight)
    load_weights(other, folder)
    assert torch.equal(other[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "no index of weights: expected a weight_map"),
        ("[]", "no index of weights"),
        ('{"weight_map": 3}', "no index of weights"),
        ('{"weight_map": {}}', "names no files beside it"),
        ('{"weight_map": {"0.weight": "../base.safetensors"}}', r"such as '\.\./base"),
        ('{"weight_map": {"0.weight": 3}}', "such as 3"),
        ('{"weight_map": {"a": "z.st", "b": "y.st"}}', "files that are not there: y.st, z.st"),
        ('{"weight_map": {"lost": "model-1-of-2.safetensors"}}', "none of its files has: lost"),
    ],
)
def test_an_index_that_cannot_be_followed(tmp_path, model, index, said):
    folder = shards(tmp_path / "several", model.state_dict())
    (folder / INDEX).write_text(index)
    with pytest.raises(FileError, match=said):
        read_state(folder)


def test_a_shard_that_is_cut_off_is_named(tmp_path, model):
    folder = shards(tmp_path / "several", model.state_dict())
    shard = folder / "model-2-of-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(FileError, match=r"model-2-of-2\.safetensors is not a readable file"):
        read_state(folder)


def repaired(*words):
    done = CliRunner().invoke(app, ["repair", *map(str, words)])
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def case(tmp_path, model):
    memory = retain.MAS(model).observe(torch.randn(8, 4), progress=False).consolidate()
    memory.save(tmp_path / "memory.safetensors")
    tuned = {n: w + 0.1 for n, w in model.state_dict().items()}
    base = shards(tmp_path / "base", model.state_dict())
    return memory, base, shards(tmp_path / "tuned", tuned), tuned


def test_repair_reads_folders_and_writes_into_none_of_them(tmp_path, case, model):
    memory, base, folder, tuned = case
    out = tmp_path / "out.safetensors"
    given = [base, folder, "--memory", tmp_path / "memory.safetensors", "--out"]
    assert repaired(*given, out)[0] == 0
    assert same(load_file(out), retain.repair(model.state_dict(), tuned, memory))
    before = (base / "model-1-of-2.safetensors").read_bytes()
    status, said = repaired(*given, base / "model-1-of-2.safetensors")
    assert (status, "one of the inputs" in said) == (2, True)
    assert (base / "model-1-of-2.safetensors").read_bytes() == before


def test_a_whole_model_a_memory_and_another_format_say_what_to_do(tmp_path, case, model):
    _, base, _, _ = case
    torch.save(model, tmp_path / "whole.pt")
    memory, out = tmp_path / "memory.safetensors", tmp_path / "out.safetensors"
    status, said = repaired(base, tmp_path / "whole.pt", "--memory", memory, "--out", out)
    assert status == 2
    assert "save only the weights: torch.save(model.state_dict(), …)" in said
    assert "It holds objects of 'torch.nn.modules.container.Sequential'" in said
    assert "\\x1b" not in said
    assert "weights_only" not in said
    status, said = repaired(base, memory, "--memory", memory, "--out", out)
    assert (status, "holds a memory, not weights" in said) == (2, True)
    for name in ("out.pt", "out.bin"):
        status, said = repaired(base, base, "--memory", memory, "--out", tmp_path / name)
        assert (status, "a name such as" in said) == (2, True)
        assert not (tmp_path / name).exists()


def test_names_that_two_wrappers_begin(tmp_path, model):
    for before in ("_orig_mod.module.", "module._orig_mod."):
        torch.save({before + n: w for n, w in model.state_dict().items()}, tmp_path / "w.pt")
        assert same(read_state(tmp_path / "w.pt"), model.state_dict())
