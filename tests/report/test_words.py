"""The sentence that says how it went, and numbers as people read them."""

from __future__ import annotations

from typing import Any

import pytest

import retain.report
from retain.experiment.metrics import Spread
from retain.report.format import percent, points, seconds, size
from retain.report.text import facts, title
from retain.report.variants import ShownResults

from . import made_up


def two_tasks(method: str, lost: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    accuracy = [[0.9, None], [0.9 - lost, 0.8]]
    run = {"method": method, "seed": seed, "tasks": ["a", "b"], "accuracy": accuracy}
    return {**run, **made_up.measures(accuracy), **more}


def said(*runs: dict[str, Any]) -> str:
    return retain.report.summary({"schema": 1, "versions": {}, "config": {}, "runs": list(runs)})


def test_the_sentence_of_the_paper() -> None:
    sentence = said(two_tasks("finetune", 0.142), two_tasks("mas", 0.006))
    assert sentence == "MAS forgot 0.6 points on average; FineTune 14.2."


def test_it_is_the_mean_over_seeds_and_of_the_best_strength() -> None:
    seeds = (two_tasks("mas", 0.01, seed=0), two_tasks("mas", 0.03, seed=1))
    assert said(*seeds) == "MAS forgot 2.0 points on average."
    sweep = [two_tasks("mas", lost, strength=s) for s, lost in ((1.0, 0.2), (10.0, 0.05))]
    assert said(*sweep) == "MAS forgot 5.0 points on average."


def test_several_sequences_are_averaged() -> None:
    there, back = two_tasks("mas", 0.01), {**two_tasks("mas", 0.02), "tasks": ["b", "a"]}
    assert said(there, back) == "MAS forgot 1.5 points on average over 2 sequences."


def test_a_method_that_did_not_finish_every_sequence_is_not_compared() -> None:
    back = {**two_tasks("mas", 0.02), "tasks": ["b", "a"]}
    everywhere = said(two_tasks("mas", 0.02), back, two_tasks("si", 0.5))
    assert everywhere == "MAS forgot 2.0 points on average over 2 sequences."


def test_a_gain_is_called_one() -> None:
    sentence = said(two_tasks("mas", -0.004), two_tasks("finetune", 0.05))
    assert sentence == "MAS gained 0.4 points on average; FineTune forgot 5.0."
    both = said(two_tasks("mas", 0.01), two_tasks("finetune", -0.05))
    assert both == "MAS forgot 1.0 points on average; FineTune gained 5.0."


def test_with_many_methods_it_says_which_forgot_least() -> None:
    three = [two_tasks("mas", 0.02), two_tasks("ewc", 0.01), two_tasks("si", 0.03)]
    assert said(*three).endswith("SI 3.0. EWC forgot least.")
    joint = two_tasks("joint", 0.0)
    assert said(joint, *three).endswith("Joint training aside, EWC forgot least.")
    three[1] = two_tasks("ewc", 0.05)
    assert said(*three).endswith("EWC 5.0. No other method forgot less.")


def test_without_mas_the_least_forgetful_is_the_subject() -> None:
    sentence = said(two_tasks("finetune", 0.3), two_tasks("si", 0.2), two_tasks("ewc", 0.1))
    assert sentence == "EWC forgot 10.0 points on average; FineTune 30.0."


def test_what_is_not_finished_is_said_first() -> None:
    made = made_up.unfinished()
    assert retain.report.summary(made).startswith("1 of 2 runs finished so far. FineTune forgot")
    failed = two_tasks("mas", 0.1, status="failed", error="Out of memory.")
    assert said(failed) == "No run finished, 1 failed."
    assert said(failed, two_tasks("si", 0.1)).startswith("1 of 2 runs finished, 1 failed. SI")
    assert said() == "Nothing was run yet."


def test_one_task_cannot_be_forgotten() -> None:
    run = two_tasks("mas", 0.0)
    run.update(tasks=["a"], accuracy=[[0.9]], average_accuracy=0.9, average_forgetting=None)
    assert said(run) == "With a single task there is nothing to forget."


def test_one_seed_has_no_spread() -> None:
    assert Spread.of([]) is None
    assert Spread.of([0.5, None]) == Spread(0.5)
    assert percent(Spread.of([0.5])) == "50.00"
    assert percent(Spread.of([0.98, 0.99, 1.0])) == "99.00 ± 1.00"
    assert percent(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(-0.00001, "0.00"), (-0.0123, "−1.23"), (0.5, "50.00")]
)
def test_percent_never_shows_a_negative_zero(value: float, text: str) -> None:
    assert percent(Spread(value)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.012, "+1.2"), (-0.004, "−0.4"), (0.0, "0.0"), (-0.0001, "0.0")]
)
def test_changes_have_a_sign(value: float, text: str) -> None:
    assert points(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (512, "512 B"), (1500, "1.5 kB"), (229e6, "229 MB")]
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("folders:animals=/data/a,vehicles=/data/v", "the folders animals and vehicles"),
        ("fashion-mnist=/usr/share/fashion", "fashion-mnist"),
        ("permuted-digits=5", "permuted-digits=5"),
        ("paper:flowers,birds=/data", "flowers, birds"),
        ("paper=/data", "paper"),
        ("the digits: 0-1 → 2-3; 4-5 → 6-7", "the digits: 0-1 → 2-3; 4-5 → 6-7"),
        (None, "these tasks"),
    ],
)
def test_titles_name_the_tasks_without_their_paths(spec: str | None, said: str) -> None:
    config = {"tasks": spec, "methods": ["mas"]}
    results = ShownResults(source="", versions={}, config=config, runs=(), sequences=())
    assert title(results) == f"MAS on {said}"
    assert ("Tasks", said) in facts(results)
