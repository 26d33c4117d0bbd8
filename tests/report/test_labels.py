"""Places for names: in order, apart, inside, and no farther off than needed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.report.figures.canvas import Canvas
from retain.report.figures.labels import around, spaced
from retain.report.figures.style import INK, styled

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


def written(curves: list[list[tuple[float, float, str]]], **more: Any) -> dict[str, Any]:
    """Letters and where their middle is, in pixels, on axes of 400 by 400 pixels from 0 to 1."""
    with styled():
        axes = Canvas(500, 500).plot(50, 50, 400, 400)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        around(axes, curves, [INK] * len(curves), **more)
        return {t.get_text(): axes.transData.transform(t.get_position()) for t in axes.texts}


def test_letters_stand_nearer_to_their_own_point_than_to_any_of_another_curve() -> None:
    alone = [(0.2, 0.5, "0.1"), (0.8, 0.5, "1")]
    assert set(written([alone])) == {"0.1", "1"}
    near = [(0.2 + x, 0.5 + y, f"{x}{y}") for x in (-0.02, 0.02) for y in (-0.02, 0.02)]
    shown = written([alone, *([point] for point in near)])
    assert "0.1" not in shown  # crowded on all sides
    assert "1" in shown
    left, right = ([(x, 0.5, name)] for x, name in ((0.5, "a"), (0.53, "b")))
    both = written([left, right])
    assert both["a"][0] < both["b"][0]


def test_letters_keep_clear_of_other_marks_and_of_lines_to_names() -> None:
    point = [[(0.5, 0.5, "400")]]
    free = written(point)["400"]
    marked = written(point, others=[(0.5, 0.53)])["400"]
    assert tuple(marked) != tuple(free)
    x, y = free
    led = written(point, leaders=[[(x - 200, y), (x + 200, y)]])["400"]
    assert abs(led[1] - y) > 4


def test_too_many_names_are_spread_evenly() -> None:
    assert spaced([5] * 5, 16, 0, 40) == pytest.approx([0, 10, 20, 30, 40])
