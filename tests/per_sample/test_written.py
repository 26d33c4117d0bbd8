"""Forwards that write to weights: each sample is of the weights as they are, which stay so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import retain

V = 31


class Renormed(nn.Module):
    """Embeddings that are renormalised when they are looked up, tied to the output or not."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(V, 6, max_norm=1.0), nn.Linear(6, 6)
        self.out = None if tied else nn.Linear(6, V, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.inner(self.embed(tokens)))
        return h @ (self.embed.weight if self.out is None else self.out.weight).T


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_sample_is_of_the_weights_as_they_are(tied: bool, size: int) -> None:
    model = Renormed(tied=tied).double()
    weight, tokens = model.embed.weight, torch.randint(V, (10, 4))
    before = weight.detach().clone()
    truth = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in tokens:
        model.zero_grad()
        model(row[None]).square().sum().backward()
        for name, p in model.named_parameters():
            truth[name] += p.grad.abs() / 10
        weight.data.copy_(before)
    model.zero_grad()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = retain.MAS(model).observe(tokens.split(size), progress=False).observed
    for name, value in truth.items():
        assert torch.allclose(found[name], value, rtol=1e-9)
    assert weight.equal(before)
    said = [str(w.message) for w in caught if "writes to weights" in str(w.message)]
    assert len(said) == (tied and size > 1)
