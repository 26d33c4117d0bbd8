"""Out of memory in the middle of a batch: fewer samples at once, and the same sums."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError, OutOfMemoryError

N = 13
SHORTAGES = {
    "an accelerator": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"
    ),
    "the heap": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 20971520 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Python": MemoryError(),
    "a library": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
}


class Greedy(nn.Module):
    """Takes so many samples at once, and no more; forwards, or in the backward pass."""

    def __init__(self, most, error, *, backward=False):
        super().__init__()
        self.most, self.error, self.backward = most, error, backward
        self.layers = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
        seen = []  # not the module's own: what a borrowed module keeps is given back
        self.note, self.seen = seen.append, lambda: seen

    def forward(self, x):
        self.note(len(x))
        if len(x) > self.most and not self.backward:
            raise self.error
        out = self.layers(x)
        if self.backward and out.requires_grad:
            out.register_hook(self.refuse)
        return out

    def refuse(self, grad):
        if len(grad) > self.most:
            raise self.error


@pytest.fixture
def data():
    return torch.randn(N, 6)


def truth(model, data):
    model.most = N
    return retain.MAS(model).observe([data], progress=False).observed


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("error", SHORTAGES.values(), ids=SHORTAGES)
def test_goes_on_with_half(data, error, backward):
    model = Greedy(4, error, backward=backward)
    memory = retain.MAS(model)
    with pytest.warns(UserWarning, match="Out of memory with 13 samples at once.*on with 7"):
        memory.observe([data], progress=False)
    assert memory.observed.samples == N
    expected = truth(model, data)
    for name, omega in memory.observed.items():
        torch.testing.assert_close(omega, expected[name])


def test_what_fits_is_remembered(data):
    model = Greedy(4, SHORTAGES["an accelerator"])
    memory = retain.MAS(model)
    with pytest.warns(UserWarning, match="Out of memory") as told:
        memory.observe([data], progress=False)
    assert len([one for one in told if "Out of memory" in str(one.message)]) == 1
    model.seen().clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.observe([data, data], progress=False)
    assert max(model.seen()) <= 4
    assert memory.observed.samples == 3 * N


def test_not_even_one_sample(data):
    model = Greedy(4, SHORTAGES["an accelerator"])
    memory = retain.MAS(model)
    memory.observe([data[:3]], progress=False)
    before = dict(memory.observed)
    model.most = 0
    with (
        pytest.warns(UserWarning, match="Out of memory"),
        pytest.raises(OutOfMemoryError, match=r"20\.00 MiB.*Nothing of this batch"),
    ):
        memory.observe([data], progress=False)
    assert memory.observed.samples == 3
    for name, omega in memory.observed.items():
        assert torch.equal(omega, before[name])


def test_other_errors_are_not_taken_for_it(data):
    model = Greedy(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(InputError, match="shapes cannot be multiplied"):
        retain.MAS(model).observe([data], progress=False)
    assert model.seen()[-1] == N


def test_a_sampled_fisher_counts_every_sample_once(data):
    model = Greedy(5, SHORTAGES["an accelerator"])
    memory = retain.EWC(model, fisher="exact")
    with pytest.warns(UserWarning, match="Out of memory"):
        memory.observe([data], progress=False)
    model.most = N
    expected = retain.EWC(model, fisher="exact").observe([data], progress=False).observed
    for name, omega in memory.observed.items():
        torch.testing.assert_close(omega, expected[name])
