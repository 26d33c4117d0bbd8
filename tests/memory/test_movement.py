"""Distances from θ*, as they are read."""

from __future__ import annotations

import pytest

from retain.memory.movement import Distance


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (0.0, "0 (0 % of ‖θ*‖)"),
        (1e-6, "1e-06 (under 0.01 % of ‖θ*‖)"),
        (0.0055, "0.0055 (0.55 % of ‖θ*‖)"),
        (0.996, "0.996 (100 % of ‖θ*‖)"),
        (3.8, "3.8 (380 % of ‖θ*‖)"),
        (38.4, "38.4 (38 times ‖θ*‖)"),
        (70_000.0, "70,000 (70,000 times ‖θ*‖)"),
    ],
)
def test_distances_are_read_without_exponents(moved, said):
    assert str(Distance(moved, 1.0)) == f"‖θ − θ*‖ = {said}"


def test_from_an_anchor_of_zeros_there_is_no_share():
    assert str(Distance(2.0, 0.0)) == "‖θ − θ*‖ = 2"
    assert Distance(2.0, 0.0).share == ""
