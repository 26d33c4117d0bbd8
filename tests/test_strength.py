"""λ from the new task alone."""

from __future__ import annotations

import pytest

from retain import choose_strength
from retain.errors import InputError
from retain.strength import Tried


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
