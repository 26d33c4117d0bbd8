"""What is as large as the weights is summed a piece at a time, by every part of the house alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retain import pieces
from retain.borrowed import borrowed
from retain.local_rule.rule import LocalRule
from retain.penalty import Hold, proximal_
from retain.per_sample import PerSample
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch


class Largest(TorchDispatchMode):
    """How many numbers the largest new tensor has that an operation makes."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)]
        old = {t.untyped_storage().data_ptr() for t in given}
        for one in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in old:
                self.most = max(self.most, one.numel())
        return made


SHAPES = {
    "small": torch.empty(3, 4),
    "a scalar": torch.empty(()),
    "long": torch.empty(1000),
    "rows": torch.empty(50, 30),
    "transposed": torch.empty(50, 30).T,
    "channels last": torch.empty(8, 5, 6, 7).to(memory_format=torch.channels_last),
    "one long row": torch.empty(1, 2000).T,
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_element_is_in_one_piece(name):
    total = torch.zeros_like(SHAPES[name])
    sizes = []
    for (piece,) in pieces.pieces(total, size=100):
        piece += 1
        sizes.append(piece.numel())
    assert (total == 1).all()
    assert max(sizes) <= 100


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_powers_are_added(name, dtype, power, monkeypatch):
    monkeypatch.setattr(pieces, "BLOCK", 64)
    values = torch.empty_like(SHAPES[name], dtype=dtype).normal_()
    total = torch.ones(values.shape, dtype=torch.float64)
    with Largest() as largest:
        pieces.add_powers_(total, values, power)
    torch.testing.assert_close(total, 1 + values.double().abs() ** power)
    assert largest.most <= 64


@pytest.mark.parametrize(
    ("samples", "numbers", "most"), [(7, 3, 2), (7, 1, 7), (7, 9, 1), (1, 0, 1)]
)
def test_how_many_go_together(samples, numbers, most):
    assert pieces.together(samples, numbers, 8) == most


class Wide(nn.Module):
    """A convolution whose gradients are made one sample at a time."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(40, 60, 3), nn.ReLU(), nn.Flatten(), nn.Linear(480, 2)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("of", ["MAS", "the local rule", "the penalty"])
def test_all_go_by_pieces(of, monkeypatch):
    """Nothing is made that is as large as the weight, but for the gradient of a sample itself."""
    seen = []
    given = pieces.pieces

    def noticed(*tensors, size):
        seen.append(of)
        return given(*tensors, size=size)

    monkeypatch.setattr(pieces, "pieces", noticed)
    monkeypatch.setattr("retain.penalty.parts.pieces", noticed)
    model, x = Wide(), torch.randn(3, 40, 4, 4, 4)
    weight = model.layers[0].weight.detach()
    if of == "the penalty":
        proximal_(weight.clone(), [Hold(torch.rand_like(weight), weight)], 0.1)
    else:
        parameters = dict(model.named_parameters())
        rule = (
            PerSample(model, parameters, SquaredNorm())
            if of == "MAS"
            else LocalRule(model, parameters)
        )
        monkeypatch.setattr("retain.per_sample.rules.convolution.HELD", 1)
        with borrowed(model):
            rule(Batch.of(x))
    assert seen
