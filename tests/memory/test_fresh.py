"""Which layers look as their initialisation left them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retain.memory.fresh import fresh_layers

INPUTS, OUTPUTS = 16, 32


def network(bias):
    """A layer that may be fresh, with this in its bias, and one that was surely trained."""
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.Linear(OUTPUTS, INPUTS))
    generator = torch.Generator().manual_seed(0)
    bound = INPUTS**-0.5
    weight = bound * (2 * torch.rand(OUTPUTS, INPUTS, generator=generator) - 1)
    model[0].weight = nn.Parameter(weight)
    model[0].bias = nn.Parameter(torch.full((OUTPUTS,), bias * bound))
    model[1].weight = nn.Parameter(torch.randn(INPUTS, OUTPUTS, generator=generator))
    return model


@pytest.mark.parametrize(("bias", "fresh"), [(0.5, ["0"]), (1.0, ["0"]), (-1.2, []), (30.0, [])])
def test_a_bias_beyond_the_bound_of_initialisers_was_trained(bias, fresh):
    assert fresh_layers(network(bias), ["0.weight", "1.weight"]) == fresh


def test_weights_that_were_written_to_were_trained():
    model = network(0.5)
    with torch.no_grad():
        for _ in range(5):
            model[0].weight.mul_(1)
    assert fresh_layers(model, ["0.weight", "1.weight"]) == []


def initialised(how):
    layer = nn.Linear(256, 20, bias=False)
    how(layer.weight)
    return layer


INITIALISERS = [
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
    nn.init.orthogonal_,
    nn.init.xavier_normal_,
    nn.init.xavier_uniform_,
    lambda w: nn.init.normal_(w, std=0.02),
    lambda w: nn.init.trunc_normal_(w, std=0.02),
]


@pytest.mark.parametrize("how", INITIALISERS)
@pytest.mark.parametrize("seed", range(3))
def test_every_initialiser_is_known_and_what_was_trained_and_loaded_is_not(how, seed):
    torch.manual_seed(seed)
    other = nn.Linear(4, 256)
    nn.init.constant_(other.bias, 3.0)
    model = nn.Sequential(other, initialised(how))
    assert fresh_layers(model, ["0.weight", "1.weight"]) == ["1"]
    optimizer = torch.optim.Adam(model[1].parameters(), lr=0.01)
    x = torch.randn(256, 256)
    y = (x @ torch.randn(256, 8)).argmax(1)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model[1](x), y).backward()
        optimizer.step()
    loaded = nn.Linear(256, 20, bias=False)
    loaded.load_state_dict(model[1].state_dict())
    model[1] = loaded
    assert fresh_layers(model, ["0.weight", "1.weight"]) == []


@pytest.mark.parametrize("width", [8, 64])
def test_a_head_without_bias_beside_layers_that_were_trained_here(width):
    """Such as `score` of GPT-2, whatever it is called and however small it is."""
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 4, bias=False))
    nn.init.normal_(model[2].weight, std=0.02)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model[0](torch.randn(6, 5)).square().mean().backward()
        optimizer.step()
    assert fresh_layers(model, ["0.weight", "2.weight"]) == ["2"]
    with torch.no_grad():
        model[2].weight.mul_(3)  # loaded, and not as any initialiser leaves it
    assert fresh_layers(model, ["0.weight", "2.weight"]) == []


@pytest.mark.parametrize("labels", [2, 5])
def test_a_head_that_was_missing_in_the_file_of_transformers(labels, tmp_path):
    """What `from_pretrained` initialised is told, however few weights it has; not what it read."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=64, n_head=2, vocab_size=50, n_positions=16, num_labels=labels,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    body = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in body.parameters():
            p.add_(torch.rand_like(p), alpha=0.1)
    body.save_pretrained(tmp_path)
    model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path)
    observed = [name for name, _ in model.named_parameters()]
    assert fresh_layers(model, observed) == ["score"]
    model.save_pretrained(tmp_path / "whole")
    kind = transformers.GPT2ForSequenceClassification
    assert fresh_layers(kind.from_pretrained(tmp_path / "whole"), observed) == []
    with torch.no_grad():
        for _ in range(4):
            model.score.weight.mul_(1.01)
    assert fresh_layers(model, observed) == []
