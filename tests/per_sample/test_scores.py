"""Other scores, some of the parameters, and what is left on the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retain.borrowed import borrowed
from retain.per_sample import PerSample, sums_by_loop
from retain.per_sample.scores import EachOutput, Norm, SquaredNorm
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

from .zoo import REGISTRY, Watched, relative_errors

SOME = [
    "mlp_with_batch_norm",
    "batch_in_columns",
    "conv1d",
    "squeeze_and_excite",
    "encoder_sequence_first_inside",
    "swin_v1",
    "gru_bidirectional_two_layers",
    "tied_language_model",
    "embedding_bag_max",
    "spectral_norm_by_parametrization",
    "hypernetwork_per_sample",
    "gathered_by_the_data",
    "ragged_tokens",
]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("score", [Norm(), EachOutput()], ids=["norm", "each output"])
@pytest.mark.parametrize("name", SOME)
def test_other_scores_are_exact(name: str, score: object, power: int) -> None:
    watched = Watched(REGISTRY[name], power=power, score=score)
    assert not watched.complaint(watched.specimen.batch())
    assert not watched.complaint(watched.specimen.batch(3, seed=4))


@pytest.mark.parametrize("name", SOME)
def test_exact_without_the_self_check(name: str) -> None:
    """The check only catches what is wrong: these are right by themselves."""
    watched = Watched(REGISTRY[name], check=False)
    assert not watched.complaint(watched.specimen.batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp_with_batch_norm", "conv2d_plain", "encoder_batch_first"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """As exact as the precision allows, and summed in single precision."""
    watched = Watched(REGISTRY[name], dtype)
    batch = watched.specimen.batch(dtype=dtype)
    found, truth = watched.engine(batch), watched.truth(batch)
    for parameter, t in truth.items():
        error = (found[parameter].float() - t.float()).norm() / t.float().norm()
        assert error < 5e-2, f"{parameter}: {float(error):.1e}"


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("name", SOME)
def test_half_of_the_parameters(name: str, kept: int) -> None:
    """Parameters that are left out still take part in the forward pass, and change nothing."""
    specimen = REGISTRY[name]
    model = specimen.model()
    half = dict(list(specimen.parameters(model).items())[kept::2])
    batch = specimen.batch()
    with borrowed(model):
        found = PerSample(model, half, SquaredNorm(), output=specimen.output)(batch)
        truth = sums_by_loop(model, batch, half, SquaredNorm(), output=specimen.output)
    errors = relative_errors(found, truth, specimen)
    assert set(found) == set(half)
    assert not {parameter: e for parameter, e in errors.items() if not e <= 1e-5}


@pytest.mark.parametrize("name", SOME)
def test_nothing_is_left_on_the_model(name: str) -> None:
    """Afterwards an ordinary backward pass gives what it gave before."""
    specimen = REGISTRY[name]
    model = specimen.model()
    batch = specimen.batch()

    def ordinary() -> list[torch.Tensor | None]:
        model.zero_grad()
        specimen.output(batch.call(model)).square().sum().backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    before = ordinary()
    held = [p.grad for p in model.parameters()]
    with borrowed(model):
        PerSample(model, specimen.parameters(model), SquaredNorm(), output=specimen.output)(batch)
    assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks or "norm" in name
    for old, new in zip(before, ordinary(), strict=True):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)


def test_one_parameter_of_two_names_is_counted_once() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    with borrowed(model):
        found = PerSample(model, parameters, SquaredNorm())(Batch.of(x))
        truth = sums_by_loop(model, Batch.of(x), parameters, SquaredNorm(), output=first_tensor)
    for name in parameters:
        torch.testing.assert_close(found[name], truth[name])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0)])
def test_the_gradient_of_the_norm_lies_in_memory_as_the_output_does(order):
    """Else whatever comes before it copies, once for every sample."""
    back = [order.index(dim) for dim in range(4)]
    output = torch.randn([(5, 3, 4, 2)[dim] for dim in order]).permute(back).requires_grad_()
    scores = SquaredNorm()(output)
    torch.testing.assert_close(scores, output.square().sum((1, 2, 3)))
    (gradient,) = torch.autograd.grad(scores.sum(), output)
    torch.testing.assert_close(gradient, 2 * output)
    assert gradient.stride() == output.stride()
