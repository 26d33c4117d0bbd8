"""How many samples go through a network at once where it is not trained."""

from __future__ import annotations

import pytest

from retain.experiment.evaluate import BATCH, LARGE_BATCH, importance_size, pass_size

SMALL, IMAGE = (1, 28, 28), (3, 224, 224)


def test_large_inputs_go_fewer_at_a_time() -> None:
    assert pass_size(SMALL) == BATCH
    assert pass_size(IMAGE) == LARGE_BATCH


@pytest.mark.parametrize(("batch_size", "size"), [(16, 16), (1000, LARGE_BATCH)])
def test_importance_takes_no_more_memory_than_training(batch_size: int, size: int) -> None:
    assert importance_size(IMAGE, batch_size) == size


def test_small_inputs_go_many_at_a_time_whatever_training_does() -> None:
    assert importance_size(SMALL, 16) == BATCH
