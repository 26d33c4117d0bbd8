"""Products of one sample, whatever way their factors lie in memory; no private call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import retain
from retain.per_sample.contributions import Factors
from retain.per_sample.layout import Blocks
from retain.per_sample.products import add_products
from retain.per_sample.summing import sum_contributions
from retain.per_sample.sums import Sum

aten = torch.ops.aten
OTHER_PRODUCTS = (aten.bmm, aten.baddbmm, aten.addmm, aten.mv, aten.addmv, aten.linear, aten.einsum)
N, T, P, Q = 8, 65, 1536, 384
LAYOUTS = {
    "one after another": lambda size: torch.randn(N, T, size),
    "sequence first": lambda size: torch.randn(T, N, size).transpose(0, 1),
    "a slice of a wider row": lambda size: torch.randn(N, T, 3 * size)[..., :size],
    "sequence first, a slice": lambda size: torch.randn(T, N, 3 * size)[..., size:-size].transpose(
        0, 1
    ),
    "columns": lambda size: torch.randn(N, size, T).mT,
    "every second": lambda size: torch.randn(N, 2 * T, 2 * size)[:, ::2, ::2],
    "one for all": lambda size: torch.randn(T, size).expand(N, T, size),
}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0, 1, 7])
@pytest.mark.parametrize("n", [2, 9])
def test_products_are_products(n, t, dtype, power):
    left, right = torch.randn(n, t, 5, dtype=dtype), torch.randn(n, t, 9, dtype=dtype)
    total = Sum(torch.Size((5, 9)), dtype, torch.device("cpu"), power)
    total.add(torch.ones(5, 9, dtype=dtype))
    add_products(left, right, total)
    expected = 1 + (left.mT @ right).abs().pow(power).sum(0)
    torch.testing.assert_close(total.result(), expected)


def test_nan_and_infinity_are_kept():
    left, right = torch.tensor([[[float("nan"), 1.0]]]), torch.tensor([[[1.0, float("inf")]]])
    total = Sum(torch.Size((2, 2)), torch.float32, torch.device("cpu"), 1)
    add_products(left, right, total)
    found = total.result()
    assert found[0].isnan().all()
    assert found[1, 0] == 1
    assert found[1, 1].isinf()


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_in_memory_takes_ordinary_products_and_no_more(name):
    """One matrix product of each sample, which copies what lies in memory in an odd way."""
    left, right = LAYOUTS[name](P), LAYOUTS[name](Q)
    total = Sum(torch.Size((P, Q)), torch.float32, torch.device("cpu"), 1)
    with Products() as products:
        sum_contributions([Factors(left, right, None)], N, total)
    assert products.multiplications == N * T * P * Q
    assert not products.other
    torch.testing.assert_close(total.result(), (left.mT @ right).abs().sum(0), rtol=1e-4, atol=1e-3)


def test_rows_of_a_sequence_first_batch():
    left, right = torch.randn(T * N, P), torch.randn(T * N, Q)
    total = Sum(torch.Size((P, Q)), torch.float32, torch.device("cpu"), 1)
    with Products() as products:
        sum_contributions([Factors(left, right, Blocks(0, T, N, 1))], N, total)
    assert products.multiplications == N * T * P * Q
    assert not products.other


def test_no_private_operation_is_called():
    source = Path(retain.__file__).parent / "per_sample"
    assert not [f for f in source.rglob("*.py") if "torch.ops.mkldnn" in f.read_text("utf-8")]


class Products(TorchDispatchMode):
    """Counts what ordinary products of matrices multiply, and keeps what is anything else.

    `mm` copies a matrix first if it lies in memory as no library takes it; other operations leave
    such matrices to the library, which may fall back on loops that take a thousand times as long.
    """

    def __init__(self):
        super().__init__()
        self.multiplications = 0
        self.other = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket
        if name is aten.mm:
            left, right = args
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        elif func.namespace != "aten" or name in OTHER_PRODUCTS:
            self.other.append(func)
        return func(*args, **(kwargs or {}))
