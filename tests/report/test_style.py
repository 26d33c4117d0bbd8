"""Colours that can be seen on light and on dark pages, and looks that can be told apart."""

from __future__ import annotations

import pytest

from retain.report.figures.style import COLOURS, KINDS, LOOKS, look, looks
from retain.report.format import METHODS


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a: str, b: str) -> float:
    """The contrast of WCAG 2, 1 to 21."""
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", sorted(set(COLOURS) - {"surface", "grid"}))
def test_text_and_lines_stand_out(name: str) -> None:
    least = 4.5 if name in ("ink", "muted", "blue") else 3.0  # blue is also the links' colour
    for colour, surface in zip(COLOURS[name], COLOURS["surface"]):
        assert contrast(colour, surface) >= least


def test_colours_can_be_told_from_each_other_by_the_page() -> None:
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS)


def test_methods_differ_in_more_than_their_hue() -> None:
    assert set(LOOKS) == set(METHODS)
    seen = [(own.marker, own.filled) for own in LOOKS.values()]
    assert len(set(seen)) == len(seen)


def test_a_method_that_occurs_again_keeps_its_colour() -> None:
    first, other, second = looks(["mas", "ewc", "mas"])
    assert first == look("mas")
    assert other == look("ewc")
    assert second.colour == first.colour
    assert second.marker != first.marker


def test_kinds_of_memory_differ() -> None:
    assert len(set(KINDS.values())) == len(KINDS)
