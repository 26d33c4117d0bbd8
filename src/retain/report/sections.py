"""What stands on the page, in which order: sections of tables and pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from retain.report import facts
from retain.report.figures.matrices import matrices
from retain.report.figures.picture import Picture
from retain.report.grid import Grid
from retain.report.headline import cost, headline
from retain.report.results import Results, Sequence


@dataclass(frozen=True)
class Part:
    """Tables and pictures of one sequence of tasks."""

    id: str
    heading: str = ""
    grids: tuple[Grid, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A run that failed, and what it said."""

    name: str
    error: str


@dataclass(frozen=True)
class Section:
    """A heading, a sentence on what to see, and what there is to see."""

    id: str
    title: str
    lead: str = ""
    parts: tuple[Part, ...] = ()
    failures: tuple[Failure, ...] = ()
    listing: str = ""


def sections(results: Results) -> list[Section]:
    """Everything that these results have something to say about."""
    found = [
        _per_sequence(results, "results", "How it ended", "", grids=lambda s: [headline(s)]),
        _per_sequence(
            results,
            "matrices",
            "Accuracy matrices",
            "Down: after learning this task. Across: tested on this task. Read a column downwards "
            "to see a task being forgotten; the diagonal is how well each was learned. In percent, "
            "the mean over seeds; the deeper the colour, the better.",
            pictures=matrices,
        ),
        _per_sequence(results, "cost", "Time and memory", "", grids=lambda s: [cost(s)]),
        _failures(results),
        Section("config", "How it was run", listing=facts.listing(results)),
    ]
    return [section for section in found if section]


def _per_sequence(
    results: Results,
    id: str,
    title: str,
    lead: str,
    *,
    grids: Callable[[Sequence], list[Grid | None]] = lambda _: [],
    pictures: Callable[[Sequence, str], list[Picture]] = lambda _s, _p: [],
) -> Section | None:
    """A section with a part for each sequence of tasks; None when it would be empty."""
    several = len(results.sequences) > 1
    parts = []
    for sequence in results.sequences:
        prefix = f"{_slug(sequence.name)}-" if several else ""
        shown = tuple(grid for grid in grids(sequence) if grid)
        drawn = tuple(pictures(sequence, prefix))
        if shown or drawn:
            heading = sequence.name if several else ""
            parts.append(Part(f"{prefix}{id}", heading, shown, drawn))
    return Section(id, title, lead, tuple(parts)) if parts else None


def _failures(results: Results) -> Section | None:
    failed = results.with_status("failed")
    if not failed:
        return None
    told = tuple(Failure(facts.run_name(run), run.error or "No reason given.") for run in failed)
    return Section("failures", "What failed", failures=told)


def _slug(name: str) -> str:
    """A name that is safe in a file name and in an id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "tasks"
