"""How the data is cut into batches does not change the result."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import retain
from retain.samples.batches import Batch

from .zoo import REGISTRY, Watched, relative_errors

DOZEN = [
    "mlp_with_batch_norm",
    "flattened_tokens_time_first",
    "bilinear_of_two_inputs",
    "conv2d_groups_dilation_stride",
    "depthwise_separable",
    "group_norm",
    "batch_norm_before_a_class_token",
    "encoder_sequence_first_directly",
    "vision_transformer_with_class_token",
    "lstm_bidirectional_two_layers",
    "lstm_of_packed_sequences",
    "embedding_bag_with_offsets",
    "tied_language_model",
    "weight_norm_by_parametrization",
    "written_into_a_buffer",
    "hard_mixture_of_experts",
]
SAMPLES = 64


@cache
def _one_by_one(name: str) -> dict[str, Tensor]:
    watched = Watched(REGISTRY[name])
    return watched.truth(watched.specimen.batch(SAMPLES))


@pytest.mark.parametrize("size", [1, 3, 7, 64])
@pytest.mark.parametrize("name", DOZEN)
def test_sums_do_not_depend_on_the_batch_size(name: str, size: int) -> None:
    watched = Watched(REGISTRY[name])
    whole = watched.specimen.batch(SAMPLES)
    total: dict[str, Tensor] = {}
    for start in range(0, SAMPLES, size):
        for parameter, part in watched.engine(whole.take(start, start + size)).items():
            total[parameter] = total.get(parameter, 0) + part
    errors = relative_errors(total, _one_by_one(name), watched.specimen)
    assert not {parameter: e for parameter, e in errors.items() if not e <= 1e-5}


def test_one_image_is_as_many_beside_others() -> None:
    """PyTorch's backward of batch norms takes one channel for another, in a batch of one."""
    watched = Watched(REGISTRY["batch_norm_before_a_class_token"])
    batch = watched.specimen.batch(4)
    errors = relative_errors(
        watched.truth(batch), watched.truth_of_one_graph(batch), watched.specimen
    )
    assert not {parameter: e for parameter, e in errors.items() if not e <= 1e-9}


@pytest.mark.parametrize("labels", [False, True])
def test_batches_of_two_are_known_the_next_time(labels: bool) -> None:
    """A sample alone makes another graph of a recurrent layer; two of them prove the plan."""
    torch.manual_seed(0)
    model = nn.LSTM(4, 6, batch_first=True)
    kind = {"fisher": "empirical"} if labels else {}
    memory = (retain.EWC if labels else retain.MAS)(model, **kind)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))

    def observe(n: int) -> int:
        calls.clear()
        x = torch.randn(n, 5, 4)
        memory.observe([(x, torch.randint(6, (n, 5)))] if labels else x, progress=False)
        return len(calls)

    for n in (2, 4):
        observe(n)
    assert observe(2) == observe(4)


def test_a_batch_taken_twice() -> None:
    raw = {"x": torch.arange(6).view(2, 3), "more": ["a", "b"], "scale": torch.ones(1)}
    batch = Batch.of(raw)
    twice = batch.doubled()
    assert twice is not None
    assert twice.samples == 4
    assert torch.equal(twice.kwargs["x"], raw["x"].repeat(2, 1))
    assert torch.equal(twice.take(2, 4).kwargs["x"], raw["x"])
    assert torch.equal(twice.kwargs["scale"], raw["scale"])
