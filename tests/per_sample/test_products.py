"""Products of one sample, whatever way their factors lie in memory; no private call."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import retain
from retain.per_sample.contributions import Factors
from retain.per_sample.layout import Blocks
from retain.per_sample.products import add_products
from retain.per_sample.summing import sum_contributions
from retain.per_sample.sums import Sum

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
def test_no_layout_in_memory_is_slow(name):
    """A few times what the weight gradient takes; a library's reference loops take 1000 ×."""
    left, right = LAYOUTS[name](P), LAYOUTS[name](Q)
    flat = left.reshape(-1, P).contiguous(), right.reshape(-1, Q).contiguous()
    total = Sum(torch.Size((P, Q)), torch.float32, torch.device("cpu"), 1)
    ours = took(lambda: (total.clear(), sum_contributions([Factors(left, right, None)], N, total)))
    plain = took(lambda: flat[0].T @ flat[1])
    torch.testing.assert_close(total.result(), (left.mT @ right).abs().sum(0), rtol=1e-4, atol=1e-3)
    assert ours < 8 * plain


def test_rows_of_a_sequence_first_batch():
    left, right = torch.randn(T * N, P), torch.randn(T * N, Q)
    layout = Blocks(0, T, N, 1)
    total = Sum(torch.Size((P, Q)), torch.float32, torch.device("cpu"), 1)
    ours = took(
        lambda: (total.clear(), sum_contributions([Factors(left, right, layout)], N, total))
    )
    assert ours < 8 * took(lambda: left.T @ right)


def test_no_private_operation_is_called():
    source = Path(retain.__file__).parent / "per_sample"
    assert not [f for f in source.rglob("*.py") if "torch.ops.mkldnn" in f.read_text("utf-8")]


def took(run):
    """The shortest of three calls, in seconds of this process."""
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return min(seconds)
