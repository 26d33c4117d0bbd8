"""The quick ways to a convolution's per-sample weight gradients, against one sample at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from retain.per_sample import devices
from retain.per_sample.contributions import SampleGradients
from retain.per_sample.layout import Blocks
from retain.per_sample.rules import convolution
from retain.per_sample.rules.convolution import Settings, weight_contribution, weight_gradient
from retain.per_sample.summing import sum_contributions
from retain.per_sample.sums import Sum
from retain.per_sample.switches import unrounded

N = 5


GEOMETRIES = {  # kernel, stride, padding, dilation, size of the inputs
    "5²": ((5, 5), (1, 1), (2, 2), (1, 1), (28, 28)),
    "5², stride 2": ((5, 5), (2, 2), (2, 2), (1, 1), (56, 56)),
    "7 × 4, stride 2 × 1": ((7, 4), (2, 1), (3, 0), (1, 1), (30, 33)),
    "5 × 7, everything differs": ((5, 7), (3, 2), (4, 1), (2, 3), (41, 50)),
    "a column": ((4, 1), (1, 1), (3, 0), (1, 1), (9, 1)),
}


@pytest.mark.parametrize("numbers", [1, 20000, 1 << 20])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_separate_channels_with_large_kernels(name, numbers, monkeypatch):
    monkeypatch.setattr(convolution, "REARRANGED", numbers)
    channels, (kernel, stride, padding, dilation, size) = 6, GEOMETRIES[name]
    settings = Settings(stride, padding, dilation, False, (0, 0), channels)
    inputs, weight = torch.randn(N, channels, *size), torch.randn(channels, 1, *kernel)
    grad = torch.randn_like(F.conv2d(inputs, weight, None, stride, padding, dilation, channels))
    with unrounded():  # for TF32 these sums are too close
        quick = convolution._as_kernels(inputs, grad, weight, settings)
        contribution = weight_contribution(inputs, grad, weight, settings, Blocks(0, 1, N, 1))
    assert isinstance(contribution, SampleGradients)
    for k in range(N):
        one = slice(k, k + 1)
        double = (t.double() for t in (inputs[one], grad[one], weight))
        alone = weight_gradient(*double, settings)
        for values in (quick.values, contribution.values):
            torch.testing.assert_close(values[k].double(), alone, rtol=1e-4, atol=1e-3)


CONVOLUTIONS = {
    "1d": (F.conv1d, (4, 3, 3), (3, 9), {"padding": 1}),
    "1d, pointwise with padding": (F.conv1d, (4, 3, 1), (3, 9), {"padding": 2, "stride": 2}),
    "2d": (F.conv2d, (4, 3, 3, 2), (3, 9, 8), {"padding": (1, 0), "stride": (2, 1)}),
    "2d, groups": (F.conv2d, (4, 3, 3, 3), (6, 9, 9), {"groups": 2, "dilation": 2}),
    "2d, separate channels": (F.conv2d, (6, 1, 5, 5), (6, 9, 9), {"groups": 6, "padding": 2}),
    "3d": (F.conv3d, (2, 3, 3, 2, 1), (3, 4, 5, 6), {"padding": (1, 0, 2), "stride": (1, 2, 3)}),
    "1d, transposed": (F.conv_transpose1d, (3, 4, 4), (3, 7), {"stride": 3, "padding": 1}),
    "2d, transposed": (
        F.conv_transpose2d,
        (3, 4, 3, 3),
        (3, 5, 6),
        {"stride": 2, "padding": 1, "output_padding": 1},
    ),
    "2d, transposed, groups": (
        F.conv_transpose2d,
        (4, 3, 3, 2),
        (4, 5, 6),
        {"groups": 2, "dilation": (2, 3)},
    ),
    "3d, transposed": (F.conv_transpose3d, (2, 3, 2, 3, 2), (2, 3, 4, 3), {"stride": (1, 2, 1)}),
}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("held", [1, 500, 1 << 22])
@pytest.mark.parametrize("way", convolution.ON_ACCELERATORS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_kind_on_an_accelerator(name, way, held, power, monkeypatch):
    """Both ways, whichever would be the quicker one, for memory of any size."""
    monkeypatch.setattr(devices, "room", lambda device: held)
    monkeypatch.setattr(convolution, "quickest", lambda of, ways, device: way)
    function, shape, size, arguments = CONVOLUTIONS[name]
    inputs, weight = torch.randn(N, *size).double(), torch.randn(shape).double()
    weight.requires_grad_()
    result = function(inputs, weight, **arguments)
    grad = torch.randn_like(result)
    settings = convolution._settings(result.grad_fn)
    contribution = weight_contribution(inputs, grad, weight.detach(), settings, Blocks(0, 1, N, 1))
    total = Sum(weight.shape, torch.float64, torch.device("cpu"), power)
    sum_contributions([contribution], N, total)
    each = [
        torch.autograd.grad(result, weight, alone, retain_graph=True)[0]
        for alone in torch.diag_embed(grad.movedim(0, -1)).movedim((-2, -1), (0, 1))
    ]
    torch.testing.assert_close(total.result(), torch.stack(each).abs().pow(power).sum(0))


WAYS = {
    "1d": (F.conv1d, (6, 4, 3), (4, 30), {"padding": 1}),
    "1d, groups, stride": (F.conv1d, (6, 2, 5), (4, 2100), {"groups": 2, "stride": 2}),
    "2d, many pixels": (F.conv2d, (4, 3, 3, 3), (3, 26, 27), {"stride": (1, 1), "dilation": 2}),
    "3d": (F.conv3d, (4, 3, 2, 3, 2), (3, 6, 7, 6), {"padding": (0, 1, 1)}),
    "1d, transposed": (F.conv_transpose1d, (4, 6, 3), (4, 20), {"stride": 2}),
    "2d, transposed, groups": (F.conv_transpose2d, (4, 3, 2, 3), (4, 9, 8), {"groups": 2}),
}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("way", ["each", "patches", "groups"])
@pytest.mark.parametrize("name", WAYS)
def test_whichever_way_is_the_quickest_on_a_cpu(name, way, power, monkeypatch):
    tried = []

    def chosen(of, ways, device):
        tried.extend(ways)
        for one in ways.values():
            one()
        return way

    monkeypatch.setattr(convolution, "quickest", chosen)
    call, shape, inputs, options = WAYS[name]
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x = torch.randn(N, *inputs, dtype=torch.float64)
    y = call(x, weight, **options)
    grad = torch.randn_like(y)
    settings = convolution._settings(y.grad_fn)
    total = Sum(weight.shape, weight.dtype, weight.device, power)
    with torch.no_grad():
        contribution = weight_contribution(x, grad, weight, settings, Blocks(0, 1, N, 1))
        sum_contributions([contribution], N, total)
    truth = sum(
        torch.autograd.grad(y, weight, grad * one.view(-1, *[1] * (y.ndim - 1)), retain_graph=True)[
            0
        ].abs()
        ** power
        for one in torch.eye(N, dtype=torch.float64)
    )
    torch.testing.assert_close(total.result(), truth)
    assert tried == ["each", "patches", "groups"]


@pytest.mark.parametrize("way", ["each", "patches", "groups", "kernels"])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [1, 2])
def test_kernels_larger_than_what_they_give(size, kernel, way, monkeypatch):
    """As of CIFAR's images in the last layers: rules of thumb were up to 250 times too slow."""
    tried = []
    monkeypatch.setattr(convolution, "quickest", lambda of, ways, device: tried.extend(ways) or way)
    weight = torch.randn(6, 1, kernel, kernel, requires_grad=True)
    x = torch.randn(N, 6, size, size).to(memory_format=torch.channels_last)
    with unrounded():
        y = F.conv2d(x, weight, padding=kernel // 2, groups=6)
        grad, settings = torch.randn_like(y), convolution._settings(y.grad_fn)
        contribution = weight_contribution(x, grad, weight.detach(), settings, Blocks(0, 1, N, 1))
        total = Sum(weight.shape, weight.dtype, weight.device, 1)
        sum_contributions([contribution], N, total)
    assert tried == ["each", "patches", "groups", "kernels"]
    double = (grad.double(), x.double(), weight.detach().double())
    truth = sum(
        weight_gradient(one_x[None], one_grad[None], double[2], settings).abs()
        for one_grad, one_x in zip(*double[:2])
    )
    torch.testing.assert_close(total.result().double(), truth, rtol=1e-4, atol=1e-4)


LAYOUTS = {
    "many pixels": ((4, 3, 3, 3), (3, 26, 27), {"padding": 1}),
    "separate channels": ((6, 1, 3, 3), (6, 12, 11), {"padding": 1, "groups": 6}),
    "separate channels, stride": ((6, 1, 3, 3), (6, 36, 35), {"stride": 2, "groups": 6}),
    "one pixel": ((8, 4, 1, 1), (4, 9, 8), {}),
}


@pytest.mark.parametrize("way", ["each", "groups"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_channels_may_be_last(name, way, monkeypatch):
    """Single samples lie in memory as the batch does: others are quietly copied by oneDNN."""
    monkeypatch.setattr(convolution, "quickest", lambda of, ways, device: way)
    shape, size, options = LAYOUTS[name]
    separate = "groups" in options
    few = 1 << 20 if separate and way == "groups" else 0
    monkeypatch.setattr(convolution, "FEW_PIXELS", few)
    given = []

    def noticed(inputs, grad, weight, settings):
        given.extend([inputs, grad])
        return weight_gradient(inputs, grad, weight, settings)

    monkeypatch.setattr(convolution, "weight_gradient", noticed)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x = torch.randn(N, *size, dtype=torch.float64).to(memory_format=torch.channels_last)
    y = F.conv2d(x, weight, **options)
    grad = torch.randn_like(y)
    settings = convolution._settings(y.grad_fn)
    total = Sum(weight.shape, weight.dtype, weight.device, 1)
    contribution = weight_contribution(x, grad, weight.detach(), settings, Blocks(0, 1, N, 1))
    sum_contributions([contribution], N, total)
    truth = sum(weight_gradient(x[k : k + 1], grad[k : k + 1], weight.detach(), settings).abs()
                for k in range(N))  # fmt: skip
    torch.testing.assert_close(total.result(), truth)
    if way == "each" or separate:
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in given)


ROUTES = {  # weight, inputs of one sample, options: the way that rules of thumb take
    "_pointwise": ((4, 3, 1, 1), (3, 30, 30), {}),
    "_unfolded": ((4, 3, 3, 3), (3, 9, 9), {"padding": 1}),
    "_patches": ((520, 520, 3, 3), (520, 3, 3), {"padding": 1}),
    "_as_kernels": ((6, 1, 5, 5), (6, 40, 40), {"groups": 6}),
    "_as_groups": ((6, 1, 3, 3), (6, 20, 20), {"groups": 6}),
    "_on_cpu": ((4, 3, 3, 3), (3, 40, 40), {}),
}


@pytest.mark.parametrize("name", ROUTES)
def test_the_way_that_is_known_to_be_quick_is_taken(name, monkeypatch):
    shape, size, options = ROUTES[name]
    taken = []
    for way in ROUTES:
        monkeypatch.setattr(convolution, way, lambda *_given, way=way: taken.append(way))
    weight = torch.randn(shape, requires_grad=True)
    x = torch.randn(N, *size)
    y = F.conv2d(x, weight, **options)
    settings = convolution._settings(y.grad_fn)
    weight_contribution(x, y.detach(), weight.detach(), settings, Blocks(0, 1, N, 1))
    assert taken == [name]


@pytest.mark.parametrize("room", [0, 1])
def test_patches_are_made_where_those_of_a_sample_fit(room, monkeypatch):
    """Of a sample: a patch of 3 · 3² numbers for each of 26² pixels."""
    tried = []
    monkeypatch.setattr(convolution, "HELD", 27 * 26 * 26 - 1 + room)
    monkeypatch.setattr(
        convolution, "quickest", lambda of, ways, device: tried.extend(ways) or "each"
    )
    x, weight = torch.randn(2, 3, 28, 28), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = F.conv2d(x, weight)
    settings = convolution._settings(y.grad_fn)
    convolution._on_cpu(x, y.detach(), weight.detach(), settings)
    assert ("patches" in tried) == bool(room)
