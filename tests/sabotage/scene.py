"""A network that has learned one task, its memory, data of another task, and what came of it.

A case takes steps on the new task in its own way. It comes out well if the weights end where a
loop written by hand ends, or if a message came before the second step.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import retain

RATE, STRENGTH, STEPS = 0.05, 20.0, 3
TOLD, THERE = "a message", "protected"


class Network(nn.Module):
    """Two hidden layers and a head."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 6), nn.Tanh()
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(x))


def batches(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 5, generator=generator), torch.randint(0, 3, (16,), generator=generator))
        for _ in range(count)
    ]


def learned(model, data, steps=40):
    """Trained on a first task, long enough that nothing is as it was initialised."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for step in range(steps):
        x, y = data[step % len(data)]
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


@dataclass
class Scene:
    """What a case starts from, and what it says about its end.

    Attributes:
        model: trained on the first task.
        data: batches of the second.
        made: steps that are done.
    """

    model: nn.Module
    data: list
    made: int = 0
    first: list = field(default_factory=lambda: batches(4, seed=1))

    @classmethod
    def new(cls, make: Callable[[], nn.Module] = Network) -> Scene:
        torch.manual_seed(0)
        scene = cls(make(), batches(STEPS, seed=2))
        learned(scene.model, scene.first)
        return scene

    def memory(self, kind=retain.MAS, **options):
        """A memory that holds the first task."""
        memory = kind(self.model, strength=STRENGTH, **options)
        return memory.observe([x for x, _ in self.first], progress=False).consolidate()

    def sgd(self, model=None, **options):
        return torch.optim.SGD(
            (self.model if model is None else model).parameters(), lr=RATE, **options
        )

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around every step that moves weights."""
        yield
        self.made += 1

    def train(self, optimizer, *, model=None, memory=None, data=None):
        """Plain steps on the new task, with the penalty in the loss if a memory is given."""
        model = self.model if model is None else model
        for x, y in data or self.data:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            (loss if memory is None else loss + memory.penalty()).backward()
            with self.step():
                optimizer.step()


@contextmanager
def listening(scene: Scene) -> Iterator[list[tuple[int, str]]]:
    """Messages, each with the number of steps that were done when it came."""
    said: list[tuple[int, str]] = []

    def show(message, category, *_rest, **_more):
        if issubclass(category, UserWarning):
            said.append((scene.made, str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            yield said
        except retain.RetainError as error:
            said.append((scene.made, str(error)))


class ByHand:
    """The loop that every case is measured against: θ ← θ − η (g + 2λΩ(θ − θ*))."""

    def __init__(self, memory, model=None):
        self.model = copy.deepcopy(memory.model if model is None else model)
        self.importance = {name: omega.clone() for name, omega in memory.importance.items()}
        self.anchor = {name: star.clone() for name, star in memory.anchor.items()}
        self.strength = memory.strength

    def pull(self, name, p):
        if name not in self.importance or self.importance[name].shape != p.shape:
            return torch.zeros_like(p)
        away = p.detach() - self.anchor[name].to(p.dtype)
        return 2 * self.strength * self.importance[name].to(p.dtype) * away

    def penalty(self):
        """λ Σ Ω (θ − θ*)²."""
        named = dict(self.model.named_parameters())
        away = {name: named[name] - self.anchor[name] for name in self.importance}
        return self.strength * sum((self.importance[n] * d**2).sum() for n, d in away.items())

    def train(self, data, *, protect=True, rate=RATE, clip=None):
        """The model after one step on each batch."""
        for x, y in data:
            named = dict(self.model.named_parameters())
            x = x.to(next(iter(named.values())).dtype) if x.is_floating_point() else x
            loss = cross_entropy(self.model(x), y)
            gradients = torch.autograd.grad(loss, list(named.values()))
            if clip is not None:
                norm = torch.stack([g.norm() for g in gradients]).norm()
                gradients = [g * min(1.0, float(clip / (norm + 1e-6))) for g in gradients]
            with torch.no_grad():
                for (name, p), g in zip(named.items(), gradients, strict=True):
                    p -= rate * (g + (self.pull(name, p) if protect else 0))
        return self.model


def distance(model, other):
    """The largest difference of any weight."""
    theirs = dict(other.named_parameters())
    return max(float((p - theirs[n]).detach().abs().max()) for n, p in model.named_parameters())
