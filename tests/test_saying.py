"""Warnings point at the line of the user's own that led to them."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import retain
from retain.saying import warn

SOURCE = Path(retain.__file__).parent
# Where a frame is counted instead: under a trainer or in a worker's answer there is no line of the
# user's, and `choose_strength` calls what warns by itself.
COUNTED = {
    "experiment/workers/crew.py",
    "integrations/lightning.py",
    "integrations/transformers/callback.py",
    "saying.py",
    "strength.py",
}


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def exclude_that_matches_nothing():
    retain.MAS(network(), exclude="heads")


def penalty_before_anything_was_observed():
    retain.MAS(network()).penalty()


def penalty_that_counts_twice():
    model = network()
    memory = retain.MAS(model).observe([torch.randn(4, 3)]).consolidate()
    with memory.attach(torch.optim.SGD(model.parameters(), lr=0.1)):
        memory.penalty().backward()


def importance_of_nothing():
    model = network()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    retain.MAS(model).observe([torch.randn(4, 3)], progress=False)


@pytest.mark.parametrize(
    "cause",
    [
        exclude_that_matches_nothing,
        penalty_before_anything_was_observed,
        penalty_that_counts_twice,
        importance_of_nothing,
    ],
)
def test_a_warning_names_the_line_that_led_to_it(cause):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cause()
    first = cause.__code__.co_firstlineno
    last = max(line for *_, line in cause.__code__.co_lines() if line)
    assert [warning.filename for warning in caught] == [__file__] * len(caught)
    assert caught
    assert all(first < warning.lineno <= last for warning in caught)


def test_a_folder_that_is_called_almost_like_torch_is_the_users():
    theirs = f"{Path(torch.__file__).parent}vision_of_their_own/training.py"
    with pytest.warns(UserWarning, match="seen") as caught:
        exec(compile("warn('seen')", theirs, "exec"), {"warn": warn})
    assert caught[0].filename == theirs


def test_nobody_counts_frames_where_the_line_can_be_found():
    counting = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "stacklevel":
                counting.add(path.relative_to(SOURCE).as_posix())
    assert counting == COUNTED
