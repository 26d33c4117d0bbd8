"""Small models with adapters of every kind that LoraPenalty knows, in double precision."""

from __future__ import annotations

import copy

import torch
from torch import nn

import retain


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, ids):
        return self.out(self.table(ids).mean(1))


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 1)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.second(torch.tanh(self.first(x))).mean((2, 3)))


class Experts(nn.Module):
    """Every sample goes through all experts; the second weight is kept transposed."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 4))
        self.down = nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x):
        hidden = torch.tanh(torch.einsum("nti,eoi->nto", x, self.up))
        return torch.einsum("nti,eio->nto", hidden[..., :4], self.down)


class OfExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def forward(self, x):
        return self.experts(x).mean(1)


def dense():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(9, 6)


def words():
    return Words(), torch.randint(0, 11, (9, 5))


def pixels():
    return Pixels(), torch.randn(9, 2, 4, 4)


def experts():
    return OfExperts(), torch.randn(9, 3, 4)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=13,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config), torch.randint(0, 13, (5, 4))


def remembered(make):
    """(a trained model in double precision, a memory of it)."""
    net, data = make()
    net = net.double().eval()
    data = data.double() if data.is_floating_point() else data
    memory = retain.MAS(net, strength=2.5).observe(data, progress=False).consolidate()
    return net, memory


def adapt(net, spread=0.3, **settings):
    """A peft model whose adapters have been trained, as far as anyone can tell."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=3, **settings)
    model = peft.get_peft_model(net, config, autocast_adapter_dtype=False)
    disturb(model, spread)
    return model


def disturb(model, spread=0.3):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * spread)


def merged_penalty(memory, model):
    """What the memory's own formula says about the merged model."""
    merged = dict(copy.deepcopy(model).merge_and_unload().named_parameters())
    total = 0.0
    for term in memory.terms:
        for name, omega in term.importance.items():
            # λ Ω (θ − θ*)²
            total += (omega * (merged[name].detach() - term.anchor[name]).square()).sum()
    return memory._weight() * total
