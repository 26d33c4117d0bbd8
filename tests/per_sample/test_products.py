"""Products of one sample, with oneDNN and without it."""

import pytest
import torch

from retain.per_sample import products


@pytest.fixture(params=["as found", "without oneDNN"])
def anywhere(request, monkeypatch):
    if request.param == "without oneDNN":
        monkeypatch.setattr(products, "_works", lambda: False)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0, 1, 7])
def test_products_are_products(t, dtype):
    left, right = torch.randn(t, 5, dtype=dtype), torch.randn(t, 9, dtype=dtype)
    expected = left.T @ right
    torch.testing.assert_close(products.product(left, right), expected)
    torch.testing.assert_close(products.abs_product(left, right), expected.abs())


@pytest.mark.usefixtures("anywhere")
def test_strided_factors():
    left, right = torch.randn(6, 4, 8)[:, 1, 2:7], torch.randn(9, 6).T
    torch.testing.assert_close(products.abs_product(left, right), (left.T @ right).abs())


@pytest.mark.usefixtures("anywhere")
def test_nan_and_infinity_are_kept():
    left, right = torch.tensor([[float("nan"), 1.0]]), torch.tensor([[1.0, float("inf")]])
    found = products.abs_product(left, right)
    assert found[0].isnan().all()
    assert found[1, 0] == 1
    assert found[1, 1].isinf()
