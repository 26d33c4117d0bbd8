"""No more is held at once than it takes: counted in tensors as large as the parameter."""

from __future__ import annotations

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retain.per_sample import sums_by_loop
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor


class Counting(TorchDispatchMode):
    """How many storages of at least so many bytes are alive at once, at most."""

    def __init__(self, size, known):
        super().__init__()
        self.size, self.live, self.most = size, set(), 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        key = storage._cdata
        if storage.nbytes() >= self.size and key not in self.live | self.known:
            self.live.add(key)
            weakref.finalize(storage, self.live.discard, key)
            self.most = max(self.most, len(self.live))


def test_the_loop_holds_a_sum_and_the_gradient_of_one_sample():
    model = nn.Linear(1000, 1100, bias=False)  # more than what is taken at once
    parameters, batch = dict(model.named_parameters()), Batch.of(torch.randn(4, 1000))
    with Counting(4 * 1000 * 1100, parameters.values()) as counting:
        sums = sums_by_loop(model, batch, parameters, SquaredNorm(), output=first_tensor)
    assert sums["weight"].count_nonzero()
    assert counting.most == 2
