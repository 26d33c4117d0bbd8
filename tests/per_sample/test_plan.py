"""A plan is a value: nothing changes it, whatever passes are made along it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from retain.per_sample import engine as engine_module
from retain.per_sample.plan import Plan

from .zoo import REGISTRY, Watched

NAMES = ["tied_language_model", "mlp_with_batch_norm", "joined_weights"]


def _made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, Any]]:
    """Every plan that is made from here on, and what it held then."""
    made: list[tuple[Plan, Any]] = []
    make = engine_module.make_plan

    def noting(*given: Any) -> Plan:
        plan = make(*given)
        made.append((plan, _held(plan)))
        return plan

    monkeypatch.setattr(engine_module, "make_plan", noting)
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
