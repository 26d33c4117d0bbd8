"""The quick ways to a convolution's per-sample weight gradients, against one sample at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from retain.per_sample.layout import Blocks
from retain.per_sample.rules import convolution
from retain.per_sample.rules.convolution import Settings, weight_gradient, weight_term
from retain.per_sample.terms import Rows

N = 5


GEOMETRIES = {  # kernel, stride, padding, dilation, size of the inputs
    "5²": ((5, 5), (1, 1), (2, 2), (1, 1), (28, 28)),
    "5², stride 2": ((5, 5), (2, 2), (2, 2), (1, 1), (56, 56)),
    "7 × 4, stride 2 × 1": ((7, 4), (2, 1), (3, 0), (1, 1), (30, 33)),
    "5 × 7, everything differs": ((5, 7), (3, 2), (4, 1), (2, 3), (41, 50)),
    "a column": ((4, 1), (1, 1), (3, 0), (1, 1), (9, 1)),
}


@pytest.mark.parametrize("at_once", [1, 20000, 1 << 20])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_separate_channels_with_large_kernels(name, at_once, monkeypatch):
    monkeypatch.setattr(convolution, "AT_ONCE", at_once)
    channels, (kernel, stride, padding, dilation, size) = 6, GEOMETRIES[name]
    settings = Settings(stride, padding, dilation, False, (0, 0), channels)
    inputs, weight = torch.randn(N, channels, *size), torch.randn(channels, 1, *kernel)
    grad = torch.randn_like(F.conv2d(inputs, weight, None, stride, padding, dilation, channels))
    quick = convolution._as_kernels(inputs, grad, weight, settings)
    term = weight_term(inputs, grad, weight, settings, Blocks(0, 1, N, 1))
    assert isinstance(term, Rows)
    for k in range(N):
        one = slice(k, k + 1)
        double = (t.double() for t in (inputs[one], grad[one], weight))
        alone = weight_gradient(*double, settings)
        for values in (quick.values, term.values):
            torch.testing.assert_close(values[k].double(), alone, rtol=1e-4, atol=1e-3)
