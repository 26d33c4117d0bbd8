"""What the local rule does on an accelerator, on the CPU: exact, and never waiting for it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from retain.borrowed import borrowed
from retain.local_rule.rule import LocalRule
from retain.per_sample import devices
from retain.samples.batches import Batch

from .cases import CASES
from .test_rule import assert_same, build, rule_for, sums_of
from .truth import local_truth

# What a card would have to be waited for, since a number of the result decides what happens next.
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "item")


PLENTY = 1 << 22


@pytest.fixture(params=[1, 3000, PLENTY], autouse=True)
def together(request, monkeypatch):
    """Samples go together, as many as make so many numbers."""
    monkeypatch.setattr(devices, "room", lambda device: request.param)
    return request.param


class Operations(TorchDispatchMode):
    """Counts what is run."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))

    @property
    def waiting(self):
        return sum(self.counts[name] for name in WAITING)


def deep(layers=6):
    """Convolutions with batch-norm and ReLU, some of which read negative numbers, and a head."""
    parts = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    for index in range(layers):
        parts += [nn.Conv2d(8, 8, 1 + 2 * (index % 2), padding=index % 2), nn.BatchNorm2d(8)]
        parts += [nn.ReLU()] if index % 3 else [nn.GELU()]
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
    ends = {
        str(i): str(i + 2) if isinstance(parts[i + 1], nn.BatchNorm2d) else str(i + 1)
        for i, part in enumerate(parts[:-1])
        if isinstance(part, (nn.Conv2d, nn.Linear))
    }
    return nn.Sequential(*parts).double().eval(), ends


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CASES)
def test_is_exact(name):
    case, model, inputs = build(name)
    rule = rule_for(model)
    for x in (inputs, inputs.abs(), inputs):
        truth = local_truth(model, x, case.ends, batch_dim=case.batch_dim)
        sums = sums_of(model, x, batch_dim=case.batch_dim, rule=rule)
        assert_same(sums, truth, rtol=1e-9, atol=1e-12)


def test_negative_numbers_that_come_later():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    rule = rule_for(model)
    for x in (torch.rand(5, 2, 6, 6), torch.randn(5, 2, 6, 6), torch.rand(5, 2, 6, 6)):
        assert_same(
            sums_of(model, x.double(), rule=rule), local_truth(model, x.double(), {"0": "1"})
        )


def test_nothing_waits_for_the_device_inside_of_a_batch():
    model, ends = deep()
    x, rule = torch.randn(7, 3, 9, 9, dtype=torch.float64), rule_for(model)
    sums_of(model, x, rule=rule)
    with borrowed(model), Operations() as operations:
        sums = rule(Batch.of(x))
    assert_same(sums, local_truth(model, x, ends), rtol=1e-9, atol=1e-12)
    assert operations.counts["convolution_backward"]
    assert not operations.waiting


def test_masks_are_followed_without_waiting():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu").double()
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    batch = {"src": x, "src_key_padding_mask": torch.arange(6) >= torch.tensor([[6], [2], [4]])}
    rule = LocalRule(model, dict(model.named_parameters()), heads=True)
    with borrowed(model):
        rule(Batch.of(batch))
        with Operations() as operations:
            found = {name: total.clone() for name, total in rule(Batch.of(batch)).items()}
        assert not operations.waiting
        alone = [
            {name: total.clone() for name, total in rule(Batch.of(x[k : k + 1, :n])).items()}
            for k, n in enumerate((6, 2, 4))
        ]
    assert found.keys() == {"linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"}
    assert_same(found, {name: sum(one[name] for one in alone) for name in found})


def test_as_many_operations_for_many_samples_as_for_few(together):
    model, _ = deep()
    counts = []
    for samples in (4, 32):
        x, rule = torch.randn(samples, 3, 9, 9, dtype=torch.float64), rule_for(model)
        sums_of(model, x, rule=rule)
        with borrowed(model), Operations() as operations:
            rule(Batch.of(x))
        counts.append(sum(operations.counts.values()))
    if together == PLENTY:
        assert counts[0] == counts[1] < 380  # of 8 layers, of which 35 are the model's own
    else:
        assert counts[0] < counts[1]
