"""A memory on disk: everything comes back, or an error says what is wrong."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from torch import nn

import retain
from retain import files
from retain.errors import FileError, StateError

DATA = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


def network(hidden=6, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, classes))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory.safetensors"


MAKE = {
    "MAS": lambda m: retain.MAS(m, strength=2.5, score="norm", include="*", check=False),
    "MAS, stored small": lambda m: retain.MAS(
        m, dtype=torch.bfloat16, device="cpu", exclude="2.bias"
    ),
    "LocalMAS": lambda m: retain.LocalMAS(m, strength=0.5),
    "EWC": lambda m: retain.EWC(m, strength=400, fisher="sampled", seed=3),
    "EWC, exact": lambda m: retain.EWC(m, fisher="exact"),
    "EWC, online": lambda m: retain.EWC(m, online=True),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_everything_comes_back(path, make):
    model = network()
    memory = make(model)
    for _ in range(2):
        memory.observe(DATA).consolidate()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05)
    memory.observe(DATA[:5])
    memory.save(path)
    again = retain.load(path, model)
    assert type(again) is type(memory)
    for setting in ("strength", "include", "exclude", "storage", "tasks"):
        assert getattr(again, setting) == getattr(memory, setting)
    assert again.state_dict()["settings"] == memory.state_dict()["settings"]
    for mine, theirs in (
        (memory.observed, again.observed),
        (memory.importance, again.importance),
    ):
        assert mine.samples == theirs.samples
        assert list(mine) == list(theirs)
        assert mine.routes == theirs.routes
        for name in mine:
            assert torch.equal(mine[name], theirs[name])
            assert mine[name].dtype == theirs[name].dtype
    for each in (memory, again):
        each.observe(DATA[5:]).consolidate()
    with torch.no_grad():
        model[0].weight.add_(0.1)
    assert memory.penalty() > 0
    assert torch.equal(memory.penalty(), again.penalty())


def test_a_fresh_memory_can_be_saved(path):
    retain.MAS(network()).save(path)
    again = retain.load(path, network())
    assert again.tasks == 0
    again.observe(DATA).consolidate()


def test_the_metadata_tells_what_the_file_is(path):
    memory = retain.MAS(network(), strength=2.0).observe(DATA).consolidate()
    memory.save(path)
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["retain"])
        names = set(opened.keys())
    assert header["kind"] == "memory"
    assert header["format"] == files.VERSION
    assert header["method"] == "MAS"
    assert header["samples"] == 12
    assert header["tasks"] == 1
    assert header["strength"] == 2.0
    assert header["torch"] == torch.__version__
    assert header["fingerprint"]["0.weight"] == [6, 4]
    assert {"importance.0/0.weight", "anchor.0/0.weight"} <= names


def test_wrapping_and_compiling_do_not_matter(path):
    model = network()
    memory = retain.MAS(torch.compile(model)).observe(DATA).consolidate()
    memory.save(path)
    for other in (model, torch.compile(model), nn.DataParallel(model)):
        again = retain.load(path, other)
        assert again.importance.keys() == dict(model.named_parameters()).keys()
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        again.attach(optimizer)
        optimizer.step()


def test_every_missing_unexpected_and_misshapen_name_is_listed(path):
    retain.MAS(network()).observe(DATA).consolidate().save(path)
    other = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3, bias=False), nn.PReLU())
    before = path.read_bytes()
    with pytest.raises(FileError) as caught:
        retain.load(path, other)
    said = str(caught.value)
    assert "missing there: 3.weight (1,)" in said
    assert "unexpected, not in the model: 2.bias (3,)" in said
    for name in (
        "0.weight (6, 4) there, (7, 4) in the model",
        "0.bias (6,) there, (7,) in the model",
        "2.weight (3, 6) there, (3, 7) in the model",
    ):
        assert name in said
    assert path.read_bytes() == before
    with pytest.raises(FileError, match="misshapen"):
        retain.load(path, other, strict=False)


def test_a_grown_model_is_accepted_when_asked_for(path):
    model = network()
    retain.MAS(model).observe(DATA).consolidate().save(path)
    model.add_module("3", nn.Linear(3, 2))
    with pytest.raises(FileError, match=r"missing there: 3\.weight \(2, 3\), 3\.bias \(2,\)"):
        retain.load(path, model)
    memory = retain.load(path, model, strict=False)
    assert "3.weight" not in memory.importance
    memory.observe(DATA).consolidate()
    assert "3.weight" in memory.importance


def test_another_head_is_accepted_when_it_is_excluded(path):
    model = network()
    memory = retain.MAS(model).observe(DATA).consolidate().observe(DATA)
    memory.save(path)
    model[2] = nn.Linear(6, 9)
    with pytest.raises(FileError, match=r"2\.weight \(3, 6\) there"):
        retain.load(path, model)
    again = retain.load(path, model, exclude="2")
    assert list(again.importance) == ["0.weight", "0.bias"]
    assert list(again.observed) == ["0.weight", "0.bias"]
    assert again.exclude == ("2",)
    again.consolidate().penalty()


def test_freezing_in_between_does_not_matter(path):
    model = network()
    retain.MAS(model).observe(DATA).consolidate().save(path)
    model[0].requires_grad_(False)
    memory = retain.load(path, model)
    with torch.no_grad():
        model[0].weight.add_(1)
    assert memory.penalty() > 0


def test_what_was_included_must_be_in_the_model(path):
    retain.MAS(network(), include="2").observe(DATA).consolidate().save(path)
    with pytest.raises(FileError, match=r"unexpected, not in the model: 2\.weight \(3, 6\)"):
        retain.load(path, nn.Sequential(nn.Linear(4, 6)))


def test_a_custom_output_must_be_given_again_before_observing(path):
    model = network()

    def output(returned):
        return returned[:, :2]

    memory = retain.MAS(model, output=output).observe(DATA).consolidate()
    memory.save(path)
    again = retain.load(path, model)
    again.penalty()
    for _ in range(2):  # the loss of it is not forgotten by saving once more
        with pytest.raises(StateError, match=r"retain\.load\(path, model, output=…\)"):
            again.observe(DATA)
        again.save(path)
        again = retain.load(path, model)
    again = retain.load(path, model, output=output)
    for each in (memory, again):
        each.observe(DATA)
    for name, omega in memory.observed.items():
        assert torch.equal(again.observed[name], omega)


def test_a_device_that_is_not_here(path):
    memory = retain.MAS(network()).observe(DATA).consolidate()
    memory.save(path)
    edit(path, lambda header, _t: header["settings"].update(device="cuda:7"))
    with pytest.warns(UserWarning, match="cuda:7"):
        again = retain.load(path, network())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.penalty()


def edit(path, change):
    """Write the file again with another header and other tensors."""
    tensors, header = files.read(path, "memory")
    change(header, tensors)
    files.write(path, "memory", tensors, header)


DAMAGE = {
    "no method": lambda h, t: h.pop("method"),
    "unknown method": lambda h, t: h.update(method="MASS"),
    "no samples": lambda h, t: h.pop("samples"),
    "settings of another": lambda h, t: h["settings"].update(colour="red"),
    "a negative strength": lambda h, t: h.update(strength=-1.0),
    "an unknown type": lambda h, t: h["settings"].update(dtype="float17"),
    "no fingerprint": lambda h, t: h.pop("fingerprint"),
    "a tensor missing": lambda h, t: t.pop("anchor.0/0.weight"),
    "a tensor too many": lambda h, t: t.update({"importance.0/9.weight": torch.ones(2)}),
    "samples as text": lambda h, t: h.update(samples="many"),
    "samples beyond counting": lambda h, t: h.update(samples=10**30),
    "a strength beyond counting": lambda h, t: h.update(strength=10**400),
    "routes that are none": lambda h, t: h.update(routes=[1, 2]),
    "a negative shape": lambda h, t: h["fingerprint"].update({"0.bias": [-1]}),
    "a norm of what is observed that is a list": lambda h, t: (
        h.pop("squared_norms"),
        h.update(observed_squared_norm=[], observed_samples=4),
    ),
    "precisions of what is observed that are a number": lambda h, t: (
        h.pop("precisions"),
        h.update(observed_precisions=7),
    ),
    "negative Ω": lambda h, t: t["importance.0/0.bias"].neg_(),
    "Ω that is not finite": lambda h, t: t["importance.0/0.bias"].fill_(torch.nan),
    "Ω of whole numbers": lambda h, t: t.update({"importance.0/0.bias": torch.ones(5).int()}),
    "a tensor of another shape": lambda h, t: t.update({"anchor.0/0.bias": torch.ones(2)}),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_file_edited_by_hand(path, change):
    retain.MAS(network()).observe(DATA).consolidate().save(path)
    edit(path, change)
    with pytest.raises(FileError, match="damaged"):
        retain.load(path, network())


def test_truncated_and_missing_files(path):
    memory = retain.MAS(network()).observe(DATA).consolidate()
    memory.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FileError, match="truncated"):
        retain.load(path, network())
    with pytest.raises(FileError, match="does not exist"):
        retain.load(path.with_name("other"), network())


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    model = network()
    memory = retain.MAS(model).observe(DATA).consolidate()
    memory.save(path)

    def fails(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    memory.observe(DATA).consolidate()
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", fails)
        with pytest.raises(FileError, match="What was there is untouched"):
            memory.save(path)
    assert retain.load(path, model).tasks == 1
    memory.save(path)
    assert retain.load(path, model).tasks == 2
