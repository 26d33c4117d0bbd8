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


def test_it_starts_high_and_halves_until_the_new_task_is_learned():
    asked = []
    choice = choose_strength(curve(asked), start=80)
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
    choice = choose_strength(curve(asked), start=8, reference=0.5)
    assert asked == [8]
    assert choice.strength == 8


def test_drop_and_decay():
    choice = choose_strength(curve(), start=100, drop=0.5, decay=0.1)
    assert [t.strength for t in choice.tried] == [100, 10]
    assert choice.accepted


def test_when_nothing_is_good_enough_the_last_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match=r"from 1e\+06 down to 250000 .* Start lower"):
        choice = choose_strength(curve(), start=1e6, tries=3)
    assert not choice.accepted
    assert choice.strength == 250_000
    assert len(choice.tried) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"start": 0}, "start=0"),
        ({"start": float("nan")}, "start=nan"),
        ({"drop": 1}, "drop=1"),
        ({"decay": 1}, "decay=1"),
        ({"tries": 0}, "tries=0"),
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
