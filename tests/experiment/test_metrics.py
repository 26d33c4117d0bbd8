import math

import pytest

from retain.errors import InputError
from retain.experiment import Config, Results, Run, metrics

# R[i][j]: on task j after learning task i
R = [
    [0.9, None, None],
    [0.95, 0.8, None],
    [0.7, 0.85, 0.6],
]


def test_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx((0.7 + 0.85 + 0.6) / 3)
    # best before the last task: 0.95 and 0.8
    assert metrics.average_forgetting(R) == pytest.approx((0.25 - 0.05) / 2)
    assert metrics.backward_transfer(R) == pytest.approx((-0.2 + 0.05) / 2)
    assert metrics.plasticity(R) == pytest.approx((0.9 + 0.8 + 0.6) / 3)
    # the first task is not counted
    before, at_random = [0.1, 0.6, 0.5], [0.9, 0.5, 0.45]
    assert metrics.forward_transfer(before, at_random) == pytest.approx((0.1 + 0.05) / 2)


def test_one_task_has_nothing_to_forget():
    assert metrics.average_accuracy([[0.9]]) == 0.9
    assert metrics.average_forgetting([[0.9]]) is None
    assert metrics.backward_transfer([[0.9]]) is None
    assert metrics.forward_transfer([0.5], [0.5]) is None


def test_a_hole_in_the_matrix_is_an_error():
    with pytest.raises(InputError, match="null"):
        metrics.average_accuracy([[0.9, None], [0.9, None]])


def test_paired_comparison_by_hand():
    # differences 1, 2, 3: mean 2, standard error 1/√3, t = 2√3 with 2 degrees of freedom
    found = metrics.compare([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    t = 2 * math.sqrt(3)
    assert found.difference == pytest.approx(2.0)
    # for two degrees of freedom P(|T| > t) = 1 − t/√(2 + t²), and t₀.₉₇₅ = 4.3027
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), rel=1e-4)
    assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), rel=1e-4)
    assert found.seeds == 3


def test_methods_that_always_differ_by_the_same():
    assert metrics.compare([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    assert metrics.compare([2.0, 3.0], [1.0, 2.0]).p_value == 0.0


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_pairs_are_needed(a, b):
    with pytest.raises(InputError, match="same two or more seeds"):
        metrics.compare(a, b)


def test_a_measure_that_runs_do_not_have_is_said_to_be_missing():
    run = Run(method="mas", seed=0, tasks=["only"], accuracy=[[0.9]], status="done")
    results = Results(Config("digits"), [run])
    assert results.mean_sd("mas", "average_accuracy") == (0.9, None)
    with pytest.raises(InputError, match="'mas' have no average_forgetting"):
        results.mean_sd("mas", "average_forgetting")
