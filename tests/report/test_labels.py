"""Places for names: in order, apart, inside, and no farther off than needed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.report.figures.labels import spaced

HEIGHTS = st.lists(st.floats(-50, 450), min_size=1, max_size=15)


@given(HEIGHTS)
def test_names_are_apart_inside_and_in_order(wanted: list[float]) -> None:
    places = spaced(wanted, 16, 0, 400)
    assert all(-1e-6 <= place <= 400 + 1e-6 for place in places)
    ordered = sorted(places)
    assert all(b - a >= 16 - 1e-6 for a, b in pairwise(ordered))
    by_wanted = [place for _, place in sorted(zip(wanted, places))]
    assert by_wanted == sorted(by_wanted)


def test_names_with_room_stay_where_they_are() -> None:
    assert spaced([100, 20, 300], 16, 0, 400) == [100, 20, 300]


def test_names_that_would_meet_move_apart_around_their_middle() -> None:
    assert spaced([100, 100], 16, 0, 400) == pytest.approx([92, 108])
    assert spaced([100, 104, 300], 16, 0, 400) == pytest.approx([94, 110, 300])


def test_names_at_the_edge_move_inwards() -> None:
    assert spaced([0, 0, 0], 16, 0, 400) == pytest.approx([0, 16, 32])
    assert spaced([400, 400], 16, 0, 400) == pytest.approx([384, 400])


def test_too_many_names_are_spread_evenly() -> None:
    assert spaced([5] * 5, 16, 0, 40) == pytest.approx([0, 10, 20, 30, 40])
