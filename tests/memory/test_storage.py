"""Ω in 8 bits, Ω and θ* on disk, and how much they take, told beforehand."""

from __future__ import annotations

import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import retain
from retain.errors import FileError, InputError
from retain.memory import footprint, storage
from retain.memory.memory_file import read_importance

EIGHT = torch.float8_e5m2
MAPS = Path("/proc/self/maps")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 256), nn.Tanh(), nn.Linear(256, 128), nn.Linear(128, 3))


def settings(way, folder):
    more = {"dtype": EIGHT} if way in {"eight", "both"} else {}
    return {**more, "offload": folder} if way in {"disk", "both"} else more


def file_behind(tensor):
    """The path of the file that a tensor's memory is mapped from; "" if from none."""
    for line in MAPS.read_text(encoding="utf-8").splitlines():
        place, *_rest, path = f"{line} ".split(" ", 5)
        first, end = (int(address, 16) for address in place.split("-"))
        if first <= tensor.data_ptr() < end:
            return path.strip().removeprefix("0").strip()
    return ""


def trained(memory, form, steps=3):
    """Weights after a few steps, and the penalty there."""
    optimizer = torch.optim.Adam(memory.model.parameters(), lr=1e-2)
    with memory.attach(optimizer, form=form):
        for x in torch.randn(steps, 8, 96, generator=torch.Generator().manual_seed(1)):
            optimizer.zero_grad()
            memory.model(x).square().sum().backward()
            optimizer.step()
        value = memory.penalty().item()
    return torch.cat([p.detach().flatten() for p in memory.model.parameters()]), value


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
def test_steps_with_importance_on_disk_are_the_same(form, tmp_path):
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(2))
    plain = retain.MAS(network(), strength=3.0).observe(x).consolidate()
    on_disk = retain.MAS(network(), strength=3.0, offload=tmp_path).observe(x).consolidate()
    assert list(tmp_path.iterdir()) == [], "nothing is left that has to be cleared away"
    for one, other in zip(trained(plain, form), trained(on_disk, form)):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("make", [retain.MAS, retain.LocalMAS, retain.EWC])
def test_eight_bits_are_used_as_what_they_stand_for(make, form, tmp_path):
    """Steps equal those of a memory that has the rounded Ω in single precision."""
    data = [torch.randn(20, 96, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    memories = [make(network(), strength=30.0, dtype=EIGHT), make(network(), strength=30.0)]
    eight, plain = memories
    for x in data:  # two tasks: EWC keeps a term for each
        eight.observe(x)
        before = eight.observed
        eight.consolidate()
        plain.observed = before
        plain.consolidate()
    state = plain.state_dict()
    for number, term in enumerate(eight.terms):
        state["tensors"][f"importance.{number}"] = {n: term.omega(n) for n in term.importance}
        state["tensors"][f"anchor.{number}"] = dict(term.anchor)
    plain.load_state_dict(state)
    stored = eight.terms[0].importance
    assert stored["0.weight"].dtype == EIGHT
    assert stored["0.bias"].dtype == torch.float32
    assert eight.anchor["0.weight"].dtype == torch.float32, "θ* is kept as the weights are"
    (one, value), (other, expected) = trained(eight, form), trained(plain, form)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert value == pytest.approx(expected, rel=1e-4)


def test_eight_bits_err_by_an_eighth_at_most():
    model = network()
    memory = retain.MAS(model).observe(torch.randn(40, 96))
    omega = memory.observed
    memory.consolidate()
    rounded = retain.MAS(model, dtype=EIGHT)
    rounded.observed = omega
    rounded.consolidate()
    for name, found in rounded.importance.items():
        exact = omega[name]
        large = exact > 1e-6 * exact.max()
        assert found.dtype == torch.float32
        assert ((found - exact).abs()[large] <= exact[large] / 8 * 1.001).all()
        assert found.max() == pytest.approx(float(exact.max()), rel=1e-6), "no overflow"
    assert rounded.drift().relative == 0


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30, 3e38])
def test_eight_bits_hold_any_range(scale):
    model = nn.Linear(4, 3)
    memory = retain.MAS(model, dtype=EIGHT)
    omega = torch.full((3, 4), scale)
    memory.observed = retain.Importance({"weight": omega, "bias": torch.ones(3)}, 1)
    memory.consolidate()
    torch.testing.assert_close(memory.importance["weight"], omega, rtol=1e-5, atol=1e-45)


@pytest.mark.parametrize("way", ["eight", "disk", "both"])
def test_saved_loaded_grown_and_carried(way, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    more = settings(way, scratch)
    memory = retain.MAS(network(), **more).observe(torch.randn(20, 96)).consolidate()
    path = tmp_path / "memory.safetensors"
    memory.save(path)
    _said, omega = read_importance(path)
    for offload in (None, scratch):
        loaded = retain.load(path, network(), offload=offload)
        loaded.load_state_dict(memory.state_dict())
        for found in (omega, loaded.importance, retain.load(path, network()).importance):
            assert all(torch.equal(found[name], memory.importance[name]) for name in found)
        loaded.observe(torch.randn(20, 96)).consolidate("pool")
        assert loaded.importance.samples == 40
        assert (loaded.storage.folder is None) == (offload is None)
    larger = network()
    larger[3] = nn.Linear(128, 5)
    with torch.no_grad():
        larger[3].weight[:3] = memory.anchor["3.weight"]
        larger[3].bias[:3] = memory.anchor["3.bias"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grown = retain.load(path, larger)
        grown.penalty()
        whole = grown.importance["3.weight"]
    torch.testing.assert_close(whole[:3], memory.importance["3.weight"])
    assert not whole[3:].any()


@pytest.mark.skipif(not MAPS.exists(), reason="asks Linux")
def test_what_is_kept_on_disk_is_not_in_memory(tmp_path, monkeypatch):
    memory = retain.MAS(network(), offload=tmp_path).observe(torch.randn(8, 96))
    alive, put = [], storage.Storage._put

    def followed(self, omega, star):
        assert not any(one() is not None for one in alive[:-1]), "one parameter after another"
        if omega.nbytes >= storage.SMALL:
            alive.append(weakref.ref(omega))
        return put(self, omega, star)

    monkeypatch.setattr(storage.Storage, "_put", followed)
    memory.consolidate()
    (term,) = memory.terms
    for tensor in (term.importance["0.weight"], term.anchor["0.weight"]):
        assert f"{tmp_path}/.retain-" in file_behind(tensor)
    memory.save(tmp_path / "memory.safetensors")
    loaded = retain.load(tmp_path / "memory.safetensors", network(), offload=tmp_path)
    (term,) = loaded.terms
    assert "memory.safetensors" in file_behind(term.importance["0.weight"])
    assert "memory.safetensors" in file_behind(term.anchor["0.weight"])


def test_a_layer_at_a_time(tmp_path):
    """Ω of a model whose sums do not fit, from passes over some of its layers."""
    x = torch.randn(30, 96)
    whole = retain.MAS(network()).observe(x).consolidate()
    model = network()
    memory = retain.MAS(model, offload=tmp_path)
    for layer in ("0", "2", "3"):
        memory.observed = retain.MAS(model, include=layer).observe(x).observed
        memory.consolidate()
    for name, omega in whole.importance.items():
        torch.testing.assert_close(memory.importance[name], omega)


def test_how_much_it_takes_is_told_before(monkeypatch):
    model = network()
    count = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    memory = retain.MAS(model, dtype=EIGHT).observe(torch.randn(8, 96)).consolidate()
    told = memory.footprint()
    assert told.weights == told.anchor == 4 * count
    assert told.importance == matrices + 4 * (count - matrices)
    assert told.observing == 8 * count
    kept = memory.terms[0]
    assert told.importance == sum(omega.nbytes for omega in kept.importance.values())
    assert told.anchor == sum(star.nbytes for star in kept.anchor.values())
    assert "MB" in str(told) or "KB" in str(told)

    monkeypatch.setattr(footprint, "LARGE", 1)
    monkeypatch.setattr(footprint, "free_bytes", lambda device: 1000)
    with pytest.warns(UserWarning, match=r"1 KB are free. Observe some layers at a time"):
        retain.MAS(model).observe(torch.randn(8, 96))
    monkeypatch.setattr(footprint, "free_bytes", lambda device: 10**12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retain.MAS(model).observe(torch.randn(8, 96))


def test_bad_folders_and_types(tmp_path, monkeypatch):
    with pytest.raises(FileError, match=r"is no folder\. Give a folder"):
        retain.MAS(network(), offload=tmp_path / "missing")
    with pytest.raises(InputError, match=r"expected None or one of torch\.float8_e5m2"):
        retain.MAS(network(), dtype=torch.float8_e4m3fn)
    memory = retain.MAS(network(), offload=tmp_path).observe(torch.randn(8, 96))

    def full(*_given, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retain.memory.storage.save_file", full)
    with pytest.raises(FileError, match=r"cannot be kept in .*No space left.*a folder with room"):
        memory.consolidate()
    assert memory.observed.samples == 8, "what was observed is still there"
    monkeypatch.undo()
    assert memory.consolidate().tasks == 1


def test_bytes_in_words():
    sizes = (0, 999, 1000, 1.5e9, 12.345e12, 999e12, 2e15)
    told = ["0 bytes", "999 bytes", "1 KB", "1.5 GB", "12.3 TB", "999 TB", "2,000 TB"]
    assert [footprint.said(size) for size in sizes] == told
