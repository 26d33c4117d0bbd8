"""λ from the new task alone."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import retain
from retain import choose_strength
from retain.errors import InputError
from retain.strength import Trial, Tried, expected_accuracy, margins


def curve(asked=None):
    """The new task is learned the worse, the harder the old ones are held."""

    def train(strength):
        if asked is not None:
            asked.append(strength)
        return 0.9 / (1 + strength / 10)

    return train


def test_it_starts_high_and_decays_until_the_new_task_is_learned():
    asked = []
    choice = choose_strength(curve(asked), start=80, drop=0.2, decay=0.5)
    # 0.9 / (1 + λ/10) ≥ 0.8 · 0.9 for λ ≤ 2.5
    assert asked == [0.0, 80, 40, 20, 10, 5, 2.5]
    assert choice.strength == 2.5
    assert choice.accepted
    assert choice.reference == 0.9
    assert choice.accuracy == pytest.approx(0.72)
    assert [t.accepted for t in choice.tried] == [False] * 5 + [True]
    assert choice.tried[0] == Tried(80.0, 0.1, False)


def test_a_reference_that_is_known_is_not_trained_again():
    asked = []
    choice = choose_strength(curve(asked), start=7, reference=0.5)
    assert asked == [7]
    assert choice.strength == 7


def test_little_may_be_lost():
    choice = choose_strength(curve(), start=10)
    # 0.9 / (1 + λ/10) ≥ (1 − 0.005) · 0.9 for λ ≤ 0.0503
    assert choice.strength == pytest.approx(10 * 0.3**5)
    assert choice.tried[-2].strength > 0.0503


def test_as_much_as_one_standard_error_may_be_lost():
    # p̃ = (0.9 · 98 + 1)/100 = 0.892, s = √(p̃ (1 − p̃)/100) = 0.031: 0.9 / (1 + λ/10) ≥ 0.869
    few = choose_strength(curve(), start=1, samples=98)
    assert [t.strength for t in few.tried] == [1, 0.3]
    assert 0.869 < few.accuracy < 0.9
    assert choose_strength(curve(), start=1, samples=10**7).strength < 0.05


def test_an_accuracy_of_one_has_noise_as_well():
    choice = choose_strength(lambda strength: 1 - strength / 100, start=2, samples=36)
    assert choice.strength == 2


def test_none_of_several_accuracies_may_be_lost():
    def train(strength):
        return 0.9, 1.0 / (1 + strength)

    choice = choose_strength(train, start=1, decay=0.1, samples=(30, 1000))
    assert [t.accepted for t in choice.tried] == [False, False, False, True]
    assert choice.accuracy == choice.reference == 0.9
    lower = choose_strength(train, start=1, decay=0.1, reference=(0.9, 0.5), samples=(30, 1000))
    assert lower.strength == 1


def test_drop_and_decay():
    choice = choose_strength(curve(), start=100, drop=0.5, decay=0.1)
    assert [t.strength for t in choice.tried] == [100, 10]
    assert choice.accepted


def test_when_nothing_is_good_enough_nothing_is_held_with_a_warning():
    with pytest.warns(UserWarning, match=r"from 1e\+06 down to 90000 .* Start lower"):
        choice = choose_strength(curve(), start=1e6, tries=3)
    assert not choice.accepted
    assert choice.strength == 0
    assert choice.accuracy == choice.reference == 0.9
    assert len(choice.tried) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"start": 0}, "start=0"),
        ({"start": float("nan")}, "start=nan"),
        ({"drop": 1}, "drop=1"),
        ({"decay": 1}, "decay=1"),
        ({"tries": 0}, "tries=0"),
        ({"old_tasks": 0}, "old_tasks=0"),
        ({"samples": 0}, "samples=0"),
        ({"samples": (10, 0)}, r"samples=\(10, 0\)"),
        ({"reference": (0.9, -1)}, "reference="),
        ({"reference": float("nan")}, "reference=nan"),
    ],
)
def test_arguments_out_of_range(wrong, said):
    with pytest.raises(InputError, match=said):
        choose_strength(curve(), **{"start": 1.0, **wrong})


def test_all_of_them_are_said_at_once():
    with pytest.raises(InputError, match=r"start=-1.*; drop=2.*; tries=0"):
        choose_strength(curve(), start=-1, drop=2, tries=0)


@pytest.mark.parametrize("given", [None, float("nan"), "good"])
def test_a_training_that_says_nothing(given):
    with pytest.raises(InputError, match=r"train\(0\) returned .*expected the accuracy"):
        choose_strength(lambda _strength: given, start=1)


def drifting(asked=None, penalty=4.0):
    """Accuracy falls, and drift as well, the harder the old tasks are held."""

    def train(strength):
        if asked is not None:
            asked.append(strength)
        return Trial(
            0.1 + 0.8 / (1 + strength / 10), forgotten=0.5 / (1 + strength), penalty=penalty
        )

    return train


def test_what_is_given_up_and_what_is_forgotten_are_least_together():
    asked = []
    choice = choose_strength(drifting(asked), chance=0.1)
    # from λ = 10/4: 1 − 1/(1 + λ/10) + 0.5/(1 + λ) = 0.343 at 2.5, 0.355 at 0.75, 0.430 at 0.225
    assert asked == pytest.approx([0, 2.5, 0.75, 0.225])
    assert choice.strength == 2.5
    assert [t.accepted for t in choice.tried] == [True, False, False]
    # it ends where the forecast alone, 0.408, is more than the best sum
    assert choice.tried[-1].forgotten == pytest.approx(0.5 / 1.225)


def test_what_is_given_up_within_the_noise_of_both_accuracies_does_not_count():
    # Agresti–Coull with 98 samples: s(0.9) = 0.0310, s(0.86) = 0.0355; together 0.0471
    trials = {10.0: Trial(0.86, 0.0), 0.0: Trial(0.9, 0.1, 1.0)}
    choice = choose_strength(trials.__getitem__, samples=98, tries=1)
    assert choice.strength == 10
    lower = {10.0: Trial(0.84, 0.01), 0.0: Trial(0.9, 0.011, 1.0)}
    assert choose_strength(lower.__getitem__, samples=98, tries=1).strength == 0


def test_where_holding_costs_more_than_it_keeps_nothing_is_held():
    choice = choose_strength(lambda s: Trial(0.9 if s == 0 else 0.5, 0.1, 1.0))
    assert (choice.strength, choice.accepted, choice.accuracy) == (0, False, 0.9)


def test_where_nothing_that_is_held_moves_nothing_is_tried():
    choice = choose_strength(drifting(penalty=0.0))
    assert (choice.strength, choice.tried) == (0, ())


def test_a_start_is_needed_where_nothing_says_which_strengths_are_large():
    with pytest.raises(InputError, match=r"got no start; .* memory.drift"):
        choose_strength(curve())
    with pytest.raises(InputError, match="no penalty to take it from"):
        choose_strength(drifting(penalty=None))
    with pytest.raises(InputError, match="expected the accuracy"):
        choose_strength(lambda _: Trial(0.5, float("nan")), start=1)


def test_every_old_task_counts_as_much_as_the_new_one():
    # 2.5 gives up 0.22 of the new task, and saves 0.08 of each of the old ones beside 0.75
    few = {0.0: Trial(0.9, 0.4, 4.0), 2.5: Trial(0.7, 0.3), 0.75: Trial(0.9, 0.38)}
    assert choose_strength(few.__getitem__, start=2.5, tries=2).strength == 0.75
    assert choose_strength(few.__getitem__, start=2.5, tries=2, old_tasks=4).strength == 2.5


def test_it_ends_where_hardly_anything_is_given_up():
    asked = []

    def train(strength):
        asked.append(strength)
        given_up = {2.5: 0.3, 0.75: 0.0009}.get(strength, 0.0) * 0.9
        return Trial(0.9 - given_up, 0.2 if strength < 2.5 else 0.05, 4.0)

    choice = choose_strength(train)
    # no smaller one can save more than the 0.0009 that 0.75 gives up
    assert asked == pytest.approx([0, 2.5, 0.75])
    assert choice.strength == 0


def test_it_is_not_raised_where_more_is_given_up_than_there_is_to_forget():
    asked = []

    def train(strength):  # old heads that answer otherwise however hard the weights are held
        asked.append(strength)
        return Trial(0.9 / (1 + strength), 0.1, 4.0)

    assert choose_strength(train).strength == 0
    assert max(asked) == 2.5


def test_ten_samples_whose_margins_are_looked_at_tell_apart_what_a_count_does_not():
    free = torch.tensor([4.0, 5, 3, 4, 5, 3, 4, 5, 3, -1])
    held = torch.tensor([0.1, 2, 0.1, 3, 0.1, 2, 0.1, 3, 0.1, -1])  # the same nine are right
    labels = torch.zeros(10, dtype=torch.long)

    def train(counted):
        def trained(strength):
            part = strength / (1 + strength)
            far = (1 - part) * free + part * held
            outputs = torch.stack([far, torch.zeros(10)], 1)
            right = (outputs.argmax(1) == labels).float().mean().item()
            accuracy = right if counted else expected_accuracy(outputs, labels)
            return Trial(accuracy, 0.02 / (1 + strength), 4.0)

        return trained

    assert choose_strength(train(counted=True)).strength == 2.5
    assert choose_strength(train(counted=False)).strength < 0.3


class Scaled(nn.Module):
    """A network whose outputs are so many times as large, and there so many times over."""

    def __init__(self, factor=1.0, copies=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
        self.factor, self.copies = factor, copies

    def forward(self, x):
        return (self.factor * self.body(x)).repeat(1, self.copies)


def choice_of(kind, *, factor=1.0, copies=1, observed_by=64, reduction="mean"):
    """λ for a second task, whose loss does not see how outputs are scaled and repeated."""
    generator = torch.Generator().manual_seed(1)
    old, new = (torch.randn(2, 128, 6, generator=generator) + 0.5).unbind()
    labels = {True: (old[:, 0] > old[:, 1]).long(), False: (new[:, 2] + new[:, 0] > 0).long()}

    def learn(model, inputs, y, memory=None):
        rate = 0.3 if reduction == "mean" else 0.3 / len(y)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        attached = memory.attach(optimizer, form="proximal") if memory else nullcontext()
        with attached:
            for _ in range(40):
                optimizer.zero_grad()
                # a temperature in the loss undoes the scale
                logits = model(inputs)[:, :2] / model.factor
                cross_entropy(logits, y, reduction=reduction).backward()
                optimizer.step()

    first = Scaled(factor, copies)
    before = kind(first) if kind is retain.SI else None
    learn(first, old, labels[True], before)
    state = before.consolidate().state_dict() if before else None

    def train(strength):
        trial = copy.deepcopy(first)
        memory = kind(trial)
        if state is None:
            memory.observe(old.split(observed_by), progress=False).consolidate()
        else:
            memory.load_state_dict(state)
        memory.strength = strength
        learn(trial, new, labels[False], memory)
        right = (trial(new)[:, :2].argmax(1) == labels[False]).float().mean().item()
        return right, memory.drift()

    return choose_strength(train, chance=0.5)


def assert_the_same(one, other):
    assert one.accepted
    assert [t.accuracy for t in one.tried] == pytest.approx([t.accuracy for t in other.tried])
    forgotten = [[t.forgotten for t in choice.tried] for choice in (one, other)]
    assert forgotten[0] == pytest.approx(forgotten[1], rel=1e-3)
    places = [[t.accepted for t in choice.tried].index(True) for choice in (one, other)]
    assert places[0] == places[1]


@pytest.mark.parametrize("kind", [retain.MAS, retain.LocalMAS, retain.SI])
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_outputs_ten_times_as_large_lead_to_the_same_choice(kind, factor):
    assert_the_same(choice_of(kind), choice_of(kind, factor=factor))


def test_so_do_more_outputs_and_other_batches():
    one = choice_of(retain.MAS)
    assert_the_same(one, choice_of(retain.MAS, copies=5))
    assert_the_same(one, choice_of(retain.MAS, observed_by=7))


def test_a_loss_that_is_a_sum_leads_to_a_strength_that_holds_as_well():
    mean, total = choice_of(retain.MAS), choice_of(retain.MAS, reduction="sum")
    kept = [next(t.forgotten for t in c.tried if t.accepted) for c in (mean, total)]
    # 128 samples: λ is to be about so many times as large, up to a step of the search
    assert 128 * 0.3 < total.strength / mean.strength < 128 / 0.3
    assert kept[1] == pytest.approx(kept[0], abs=0.05)
    assert total.accuracy == pytest.approx(mean.accuracy, abs=0.05)


# ---- margins, and the accuracy that they let expect ----


def two(far):
    """Outputs of two classes whose margins for class 0 are these."""
    first = torch.tensor(far, dtype=torch.float64)
    return torch.stack([first, torch.zeros_like(first)], 1), torch.zeros(len(far), dtype=torch.long)


def test_a_margin_is_the_distance_to_the_largest_of_the_others():
    outputs = torch.tensor([[1.0, 4.0, 2.0], [5.0, 4.0, -2.0], [1.0, 1.0, 0.0]])
    assert margins(outputs, torch.tensor([1, 2, 0])).tolist() == [2.0, -7.0, 0.0]


def test_of_normal_margins_it_is_the_accuracy():
    generator = torch.Generator().manual_seed(0)
    for mean in (-0.5, 0.0, 1.0, 2.0):
        far = mean + torch.randn(20_000, generator=generator)
        right = (far > 0).float().mean().item()
        assert expected_accuracy(*two(far.tolist())) == pytest.approx(right, abs=0.01)


def test_ten_samples_tell_apart_what_a_count_does_not():
    sure, less = [4.0, 5, 3, 4, 5, 3, 4, 5, 3, -2], [1.0, 2, 0.1, 1, 2, 0.1, 1, 2, 0.1, -2]
    one, other = two(sure), two(less)
    right = [(outputs.argmax(1) == labels).sum() for outputs, labels in (one, other)]
    assert right == [9, 9]
    assert expected_accuracy(*one) > expected_accuracy(*other) + 0.1


def test_it_does_not_see_how_sure_the_network_is_as_long_as_it_orders_as_well():
    outputs, labels = two([4.0, 5, 3, 4, 5, 3, 4, 5, 3, -2])
    for scale in (1e-3, 0.1, 10.0):
        assert expected_accuracy(outputs * scale, labels) == pytest.approx(
            expected_accuracy(outputs, labels)
        )
    shifted = outputs + torch.arange(10.0).unsqueeze(1)  # which a softmax does not see either
    assert expected_accuracy(shifted, labels) == pytest.approx(expected_accuracy(outputs, labels))


def test_margins_without_spread():
    assert expected_accuracy(*two([2.0])) == expected_accuracy(*two([2.0, 2.0])) == 1
    assert expected_accuracy(*two([-2.0])) == 0
    assert expected_accuracy(*two([0.0, 0.0])) == 0.5
    assert expected_accuracy(torch.zeros(3, 1), torch.zeros(3)) == 1  # one class


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers(broken):
    assert expected_accuracy(*two([2.0, broken, 2.0])) == 0


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3, 2), torch.zeros(2)),
        (torch.zeros(0, 2), torch.zeros(0)),
    ],
)
def test_other_shapes_are_refused(outputs, labels):
    with pytest.raises(InputError, match=r"expected outputs \[samples, classes\]"):
        expected_accuracy(outputs, labels)
