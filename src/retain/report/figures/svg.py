"""A figure as files to keep, and as SVG that lives in a page and follows its colours."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import Any

from retain.report.figures.style import COLOURS, POINTS_PER_PIXEL, SURFACE, styled

SHARP = 2  # PNG pixels per CSS pixel
_DROPPED = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|; font-family: [^;\"]+",
    re.DOTALL,
)


def save(figure: Any, stem: Path, note: str = "") -> list[Path]:
    """The figure as `stem`.svg and `stem`.png, in light colours; `note` stands in its corner."""
    if note:
        figure.text(0.995, 0.005, note, ha="right", va="bottom", size=6.5, style="italic")
    vector, pixels = stem.with_suffix(".svg"), stem.with_suffix(".png")
    with styled():
        figure.savefig(vector, facecolor=SURFACE, metadata={"Date": None})
        figure.savefig(pixels, facecolor=SURFACE, dpi=96 * SHARP)
    return [vector, pixels]


def inline(figure: Any, name: str, description: str) -> str:
    """The figure as an `<svg>` element: the page's font and colours, ids that start with `name`."""
    text = io.StringIO()
    with styled():
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = _DROPPED.sub("", svg[svg.index("<svg") :])
    # Many figures share one page: without a prefix the ids of one would point into another.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{variable})")
    points_w, points_h = figure.get_size_inches() * 72
    return (
        f'<svg viewBox="0 0 {points_w:g} {points_h:g}" role="img" '
        f'style="max-width: {points_w / POINTS_PER_PIXEL:.0f}px" '
        f'aria-label="{escape(description)}">{svg[svg.index(">") + 1 :].strip()}'
    )
