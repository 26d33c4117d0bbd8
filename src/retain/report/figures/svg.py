"""A figure as files to keep, and as SVG that lives in a page and follows its colours."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import Any

from retain import atomic
from retain.report.figures.canvas import Picture
from retain.report.figures.style import COLOURS, POINTS_PER_PIXEL, SURFACE, styled

SHARP = 2  # PNG pixels per CSS pixel
_DROPPED = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|; font-family: [^;\"]+",
    re.DOTALL,
)


def drawn(picture: Picture, folder: Path, note: str = "") -> tuple[list[str], list[Path]]:
    """The picture as an `<svg>` for each of its widths, and as files in `folder`.

    The files are of the first width, in light colours, with `note` in their corner: what the page
    says about all of its pictures a file that leaves it has to say itself.
    """
    with styled():
        figures = [picture.draw(width) for width in picture.widths]
        vectors = [_vector(figure) for figure in figures]
        inlined = [
            _inline(vector, f"{picture.name}-{width}", picture.description)
            for vector, width in zip(vectors, picture.widths)
        ]
        if note:
            size = 9 * POINTS_PER_PIXEL
            figures[0].text(0.998, 0.998, note, ha="right", va="top", size=size, style="italic")
            vectors[0] = _vector(figures[0])
        svg, png = (folder / f"{picture.name}.{suffix}" for suffix in ("svg", "png"))
        atomic.write(svg, vectors[0])
        with atomic.replacing(png) as unfinished:
            figures[0].savefig(unfinished, facecolor=SURFACE, dpi=96 * SHARP)
    return inlined, [svg, png]


def _vector(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", facecolor=SURFACE, metadata={"Date": None})
    return text.getvalue()


def _inline(svg: str, name: str, description: str) -> str:
    """The `<svg>` element: the page's font and colours, ids that start with `name`."""
    svg = _DROPPED.sub("", svg[svg.index("<svg") :])
    # Many figures share one page: without a prefix the ids of one would point into another.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{variable})")
    head, body = svg.split(">", 1)
    box = head[head.index('viewBox="') :].split('"')[1]
    width = float(box.split()[2]) / POINTS_PER_PIXEL
    return (
        f'<svg viewBox="{box}" role="img" style="max-width: {width:.0f}px" '
        f'aria-label="{escape(description)}">{body.strip()}'
    )
