"""attach(log=…, stop_when_drift_exceeds=…): the drift as training goes, and an end to it."""

from __future__ import annotations

import copy
import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import retain
from retain.errors import DriftError, InputError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def held(model, kind=retain.MAS, **more):
    return kind(model, **more).observe(torch.randn(16, 4), progress=False).consolidate()


def steps(model, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
def test_a_log_is_told_every_so_many_steps(model, form):
    memory, seen = held(model, strength=0.1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = memory.attach(optimizer, form=form, log=seen.append, every=3)
    steps(model, optimizer, 7)
    assert [one["step"] for one in seen] == [3, 6]
    steps(model, optimizer, 2)
    drift = memory.drift()
    assert seen[-1] == {
        "step": 9,
        "drift": drift.relative,
        "change": drift.change,
        "penalty": pytest.approx(0.1 * drift.penalty),
        "distance": drift.distance,
    }
    assert all(type(value) in (int, float) for value in seen[-1].values())
    handle.remove()
    steps(model, optimizer, 9)
    assert len(seen) == 3


def test_training_ends_beyond_the_limit_with_a_whole_step(model):
    memory = held(model, strength=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    told = r"After \d+ protected steps the drift is .*beyond the limit of 5 %; most of it in \d\."
    before = []

    def trained():
        for _ in range(100):
            before[:] = [p.detach().clone() for p in model.parameters()]
            steps(model, optimizer, 1)

    with (
        memory.attach(optimizer, stop_when_drift_exceeds=0.05, every=1) as handle,
        pytest.raises(DriftError, match=told),
    ):
        trained()
    assert not handle.attached
    assert memory.drift().relative > 0.05
    # The step that went too far was taken like any other, and the one before was within.
    for p, was in zip(model.parameters(), before):
        assert torch.allclose(p, was - 0.05 * p.grad)
    assert memory.forecast(dict(zip(dict(model.named_parameters()), before))).relative <= 0.05


def test_two_handles_on_one_optimizer_each_have_their_own(model):
    memory, first, second = held(model), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    one = memory.attach(optimizer, log=first.append, every=1)
    two = memory.attach(optimizer, log=second.append, every=2)
    steps(model, optimizer, 2)
    one.remove()
    steps(model, optimizer, 2)
    two.remove()
    assert ([s["step"] for s in first], [s["step"] for s in second]) == ([1, 2], [2, 4])


def test_of_several_optimizers_a_round_is_one_step(model):
    memory, seen = held(model), []
    optimizers = [torch.optim.SGD([p], lr=0.01) for p in model.parameters()]
    memory.attach(optimizers, log=seen.append, every=2)
    for _ in range(4):
        model(torch.ones(2, 4)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert [one["step"] for one in seen] == [2, 4]


def test_nothing_is_told_before_there_is_an_anchor(model):
    memory, seen = retain.SI(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    memory.attach(optimizer, log=seen.append, stop_when_drift_exceeds=0.0, every=1)
    steps(model, optimizer, 2)
    assert not seen
    memory.consolidate()
    with pytest.raises(DriftError):
        steps(model, optimizer, 1)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"log": "wandb"},
        {"every": 0},
        {"every": 1.5},
        {"stop_when_drift_exceeds": -0.1},
        {"stop_when_drift_exceeds": float("nan")},
        {"stop_when_drift_exceeds": "5 %"},
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_attached(model, wrong):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(InputError, match=next(iter(wrong))):
        held(model).attach(optimizer, **wrong)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_training_that_diverges_is_logged_as_that_and_ended_as_that(model):
    memory, seen = held(model, strength=0.0), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with memory.attach(optimizer, log=seen.append, every=1):
        with torch.no_grad():
            model[0].weight[0, 0] = torch.nan
        steps(model, optimizer, 1)
    assert math.isnan(seen[0]["drift"])
    told = r"After 1 protected steps weights hold NaN or infinity \(0\.weight.*has diverged"
    with (
        memory.attach(optimizer, stop_when_drift_exceeds=0.5, every=1),
        pytest.raises(DriftError, match=told),
    ):
        steps(model, optimizer, 1)
    with pytest.raises(InputError, match=r"0\.weight holds NaN or infinity"):
        memory.drift()


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
def test_the_end_that_one_memory_sets_is_a_whole_step_for_another(model, form):
    twin = copy.deepcopy(model)
    ends, seen = [], []
    for one, limit in ((model, 0.0), (twin, None)):
        torch.manual_seed(1)
        first, second = held(one, strength=0.5), held(one, strength=50.0)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        stop = {} if limit is None else {"stop_when_drift_exceeds": limit, "every": 1}
        here = first.attach(optimizer, form=form, **stop)
        there = second.attach(optimizer, form=form, log=seen.append, every=1)
        with nullcontext() if limit is None else pytest.raises(DriftError):
            steps(one, optimizer, 1)
        assert (here.steps, there.steps) == (1, 1)
        ends.append([p.detach().clone() for p in one.parameters()])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second.penalty()
    assert len(seen) == 2
    for stopped, whole in zip(*ends, strict=True):
        assert torch.equal(stopped, whole)


class BrokenError(Exception):
    pass


def test_what_two_memories_raise_at_the_end_of_a_step_is_both_told(model):
    def log(_told):
        raise BrokenError

    torch.manual_seed(1)
    first, second = held(model, strength=0.5), held(model, strength=5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first.attach(optimizer, stop_when_drift_exceeds=0.0, every=1)
    second.attach(optimizer, log=log, every=1)
    with pytest.raises(BrokenError) as raised:
        steps(model, optimizer, 1)
    assert isinstance(raised.value.__context__, DriftError)


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
def test_a_log_may_consolidate_at_the_end_of_a_protected_step(model, form):
    memory = held(model, strength=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def log(_told):
        memory.observe(torch.randn(4, 4), progress=False).consolidate()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with memory.attach(optimizer, form=form, log=log, every=2) as handle:
            steps(model, optimizer, 5)
        assert handle.steps == 5
        assert memory.tasks == 3
        assert memory.drift().relative > 0


@pytest.mark.parametrize("ended", ["by the limit", "by the log"])
def test_training_that_goes_on_after_an_end_is_not_told_that_it_was_unprotected(model, ended):
    def log(_told):
        raise BrokenError

    more = {"stop_when_drift_exceeds": 0.0} if ended == "by the limit" else {"log": log}
    memory = held(model, strength=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with memory.attach(optimizer, every=1, **more), pytest.raises((DriftError, BrokenError)):
        steps(model, optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with memory.attach(optimizer):
            steps(model, optimizer, 3)


def test_accumulated_gradients_are_one_step_and_a_step_that_a_scaler_skips_is_none(model):
    memory, seen = held(model, strength=0.1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with memory.attach(optimizer, log=seen.append, every=1):
        for k in range(8):  # two passes a step, one of the four steps with infinite gradients
            loss = model(torch.ones(2, 4)).square().mean() * (torch.inf if k == 3 else 1.0)
            scaler.scale(loss).backward()
            if k % 2:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    assert [one["step"] for one in seen] == [1, 2, 3]
    assert seen[-1]["drift"] == memory.drift().relative


def test_a_training_that_is_resumed_measures_from_the_same_anchor(model):
    memory, seen = held(model, strength=0.1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with memory.attach(optimizer):
        steps(model, optimizer, 3)
    copied = copy.deepcopy(model)
    other = retain.MAS(copied, strength=0.1)
    other.load_state_dict(memory.state_dict())
    resumed = torch.optim.SGD(copied.parameters(), lr=0.01)
    other.attach(resumed, log=seen.append, every=1)
    steps(copied, resumed, 1)
    with memory.attach(optimizer):
        steps(model, optimizer, 1)
    assert seen[0]["drift"] == pytest.approx(memory.drift().relative)


# ---- ‖F‖², which drift is measured by ----


def test_the_mean_squared_norm_is_recorded_however_the_batches_are_cut(model):
    x, y = torch.randn(33, 4), torch.randn(7, 4)
    memory = retain.MAS(model)
    mean = model(x).square().sum(1).mean().item()
    for cut in (1, 5, 33):
        observed = retain.MAS(model).observe(x.split(cut), progress=False).observed
        assert observed.squared_norm == pytest.approx(mean, rel=1e-6)
    memory.observe(x, progress=False).observe(y, progress=False).consolidate()
    both = model(torch.cat([x, y])).square().sum(1).mean().item()
    assert memory.importance.squared_norm == pytest.approx(both, rel=1e-6)
    drift = memory.forecast({n: p * 1.01 for n, p in model.state_dict().items()})
    assert drift.of_output == pytest.approx(drift.change / both, rel=1e-6)
    assert "% of its mean" in str(drift).replace("\n", " ")
    memory.observe(y, progress=False).consolidate()  # tasks add up, as Ω does
    other = model(y).square().sum(1).mean().item()
    assert memory.importance.squared_norm == pytest.approx(both + other, rel=1e-6)


@pytest.mark.parametrize(("merge", "a", "b"), [("sum", 1, 1), ("pool", 0.75, 0.25), (0.5, 0.5, 1)])
def test_it_merges_as_importance_does(model, merge, a, b):
    memory = retain.MAS(model)
    memory.observe(torch.randn(12, 4), progress=False).consolidate()
    first = memory.importance
    second = memory.observe(torch.randn(4, 4), progress=False).observed
    memory.consolidate(merge=merge)
    merged = memory.importance
    assert merged.squared_norm == pytest.approx(a * first.squared_norm + b * second.squared_norm)
    assert torch.allclose(merged["0.bias"], a * first["0.bias"] + b * second["0.bias"])


def test_files_states_pools_and_sums_carry_it(model, tmp_path):
    memory = held(model)
    memory.observe(torch.randn(4, 4), progress=False)
    known = memory.importance.squared_norm, memory.observed.squared_norm
    memory.save(tmp_path / "memory")
    loaded = retain.load(tmp_path / "memory", model)
    assert (loaded.importance.squared_norm, loaded.observed.squared_norm) == known
    other = retain.MAS(model)
    other.load_state_dict(memory.state_dict())
    assert (other.importance.squared_norm, other.observed.squared_norm) == known
    memory.observed.save(tmp_path / "observed")
    again = retain.Importance.load(tmp_path / "observed")
    assert again.squared_norm == known[1]
    total = retain.Importance.pool([memory.importance, again])
    assert total.squared_norm == pytest.approx((16 * known[0] + 4 * known[1]) / 20)
    assert (again + again).squared_norm == pytest.approx(2 * known[1])
    unknown = retain.Importance(dict(again), again.samples)
    assert retain.Importance.pool([unknown, again]).squared_norm is None
    assert (unknown + again).squared_norm is None
    other.observed = again
    assert other.observed.squared_norm == pytest.approx(known[1])


def test_it_is_not_known_of_the_local_rule(model):
    drift = held(model, retain.LocalMAS).drift()
    assert drift.of_output is None
    assert "% of its mean" not in str(drift).replace("\n", " ")


@pytest.mark.parametrize("lr", [0.01, 1.0, 3.0])
def test_the_step_of_a_forecast_may_be_of_any_length(model, lr):
    memory = held(model)
    batch = (torch.ones(2, 4), torch.tensor([0, 1]))
    change = memory.forecast([batch], lr=lr).change
    assert change == pytest.approx(lr * memory.forecast([batch], lr=1.0).change, rel=1e-3)
    with pytest.raises(InputError, match="lr"):
        memory.forecast([batch], lr=0.0)


@pytest.mark.parametrize("other", ["weights.pt", None, 3])
def test_what_a_forecast_cannot_be_asked_for(model, other):
    with pytest.raises(InputError, match="expected a model, a state dict, or a loader of new data"):
        held(model).forecast(other)


def test_a_batch_that_fails_in_a_forecast_is_named_and_no_more(model):
    with pytest.raises(InputError, match=r"Batch 1 .*multiplied \(2x5 and 4x8\)\.$"):
        held(model).forecast([(torch.randn(2, 5), torch.tensor([0, 1]))])
