"""A plan is a value: nothing changes it, whatever passes are made along it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retain.borrowed import borrowed
from retain.per_sample import PerSample, trust
from retain.per_sample.plan import Plan
from retain.per_sample.scores import SquaredNorm
from retain.per_sample.uses import ParameterUse
from retain.samples.batches import Batch

from .zoo import REGISTRY, Watched

NAMES = ["tied_language_model", "mlp_with_batch_norm", "joined_weights"]


def _made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, Any]]:
    """Every plan that is made from here on, and what it held then."""
    made: list[tuple[Plan, Any]] = []
    make = trust.make_plan

    def noting(*given: Any) -> Plan:
        plan = make(*given)
        made.append((plan, _held(plan)))
        return plan

    monkeypatch.setattr(trust, "make_plan", noting)
    return made


def _held(plan: Plan) -> Any:
    fields = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    frontier = {f.name: getattr(plan.frontier, f.name) for f in dataclasses.fields(plan.frontier)}
    held = {**fields, "frontier": frontier}
    held["shapes"], frontier["layouts"] = dict(plan.shapes), dict(plan.frontier.layouts)
    return held


@pytest.mark.parametrize("name", NAMES)
def test_passes_leave_a_plan_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _made(monkeypatch)
    watched = Watched(REGISTRY[name])
    for n in (5, 7, 5, 2):
        assert not watched.complaint(watched.specimen.batch(n))
    assert made
    for plan, held in made:
        assert _held(plan) == held


def test_nothing_can_be_assigned_to(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _made(monkeypatch)
    watched = Watched(REGISTRY["mlp_with_batch_norm"])
    assert not watched.complaint(watched.specimen.batch(5))
    plan, _ = made[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.groups = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.shapes[0, 0] = ()  # type: ignore[index]
    with pytest.raises(TypeError):
        plan.frontier.layouts[0, 0] = None  # type: ignore[index]


def test_a_weight_that_is_used_often_is_not_hashed_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A solver's steps: what the uses of one weight have in common is looked up, not worked out."""
    hashed = []
    usual = ParameterUse.__hash__
    monkeypatch.setattr(ParameterUse, "__hash__", lambda use: hashed.append(use) or usual(use))
    layer = nn.Linear(4, 4)

    class Solver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(30):
                x = x + 0.1 * torch.tanh(self.layer(x))
            return x

    model = Solver()
    engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
    with borrowed(model):
        engine(Batch.of(torch.randn(5, 4)))
        hashed.clear()
        engine(Batch.of(torch.randn(5, 4)))
    assert len(hashed) <= 4 * 30
