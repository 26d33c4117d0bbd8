"""What stands on the page, in which order: sections of tables and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from retain.report import text
from retain.report.figures.accuracy_matrices import colour_floor, matrices
from retain.report.figures.adaptation import adaptation
from retain.report.figures.bytes_kept import memory
from retain.report.figures.canvas import Picture
from retain.report.figures.importance_by_layer import importance
from retain.report.figures.pareto_front import frontier
from retain.report.figures.plasticity import plasticity
from retain.report.figures.sequence import over_the_sequence
from retain.report.figures.tradeoff import tradeoffs
from retain.report.format import listed, slug
from retain.report.tables.beside_the_paper import beside_the_paper
from retain.report.tables.by_class import adapted
from retain.report.tables.cost import cost, kept_at_each_step, searches
from retain.report.tables.equal_accuracy import compared, is_comparison, sentences
from retain.report.tables.grid import Grid
from retain.report.tables.operating_points import points, why_not_equal
from retain.report.tables.outcome import headline
from retain.report.variants import Sequence, ShownResults


@dataclass(frozen=True)
class Subsection:
    """Tables and pictures of one sequence of tasks."""

    id: str
    heading: str = ""
    grids: tuple[Grid, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A run that failed or was not run, and why."""

    name: str
    error: str


@dataclass(frozen=True)
class Section:
    """A heading, a sentence on what to see, and what there is to see."""

    id: str
    title: str
    lead: str = ""
    parts: tuple[Subsection, ...] = ()
    failures: tuple[Failure, ...] = ()
    listing: str = ""


def sections(results: ShownResults) -> list[Section]:
    """Everything that these results have something to say about."""
    study = results.config.get("study")
    if study == "memory":  # made in runs too short for their accuracies to mean anything
        return [section for section in _of_memory(results) if section]
    floor = min(map(colour_floor, results.sequences), default=0.0)
    paper = _beside_the_paper(results)
    found = [
        paper if paper and paper.parts else None,
        _adaptation(results) if study == "adaptation" else None,
        _frontier(results),
        _per_sequence(results, "results", "How it ended", grids=lambda s: [headline(s)]),
        _per_sequence(results, "plasticity", "Forgetting against plasticity", pictures=plasticity),
        _per_sequence(results, "tradeoff", "Trade-off over λ", pictures=tradeoffs),
        _per_sequence(
            results, "sequence", "Accuracy over the sequence", pictures=over_the_sequence
        ),
        _per_sequence(
            results,
            "matrices",
            "Accuracy matrices",
            "Down: after learning this task. Across: tested on this task. Read a column downwards "
            "to see a task being forgotten; the diagonal is how well each was learned. In percent, "
            f"the mean over seeds; the colour grows stronger from {100 * floor:.0f} % to 100 %.",
            pictures=partial(matrices, floor=floor),
        ),
        _per_sequence(
            results,
            "cost",
            "Time and memory",
            grids=lambda s: [cost(s), searches(s)],
            pictures=memory,
        ),
        _per_sequence(
            results,
            "importance",
            "Where the importance lies",
            "For each parameter its share of all importance Ω, and on a logarithmic axis how Ω is "
            "spread over its weights. Box: the middle half; tick: the median; line: up to 99 %; "
            "dot: the largest.",
            pictures=importance,
        ),
        paper if paper and not paper.parts else None,
        _failures(results),
        Section("config", "How it was run", listing=text.listing(results)),
    ]
    return [section for section in found if section]


def _of_memory(results: ShownResults) -> list[Section | None]:
    """The study of memory: bytes, and no accuracies."""
    return [
        _beside_the_paper(results),
        _per_sequence(
            results,
            "memory",
            "What each method keeps",
            "Bytes depend on the network and on the classes, not on how long or how well it is "
            "trained: they were measured in runs as short as possible, whose accuracies say "
            "nothing and are not shown.",
            grids=lambda s: [kept_at_each_step(s)],
            pictures=memory,
        ),
        _failures(results),
        Section("config", "How it was run", listing=text.listing(results)),
    ]


def _adaptation(results: ShownResults) -> Section | None:
    chosen = tuple(results.config.get("adapt_to") or ())
    return _per_sequence(
        results,
        "adaptation",
        "What is kept, and what is given up",
        f"Ω is computed on all data of the first task, or only on those of {listed(chosen)}; "
        "then the second task is learned.",
        grids=lambda s: [adapted(s, chosen)],
        pictures=partial(adaptation, chosen=chosen),
    )


def _frontier(results: ShownResults) -> Section | None:
    """A comparison at equal accuracy on new tasks, where methods were swept along their knobs."""
    if not is_comparison(results):
        return None
    equal = any(not why_not_equal(points(sequence)) for sequence in results.sequences)
    return _per_sequence(
        results,
        "frontier",
        "What is forgotten at equal accuracy on new tasks"
        if equal
        else "What is forgotten, and what is learned",
        " ".join(sentences(sequence) for sequence in results.sequences),
        grids=lambda s: [compared(s)],
        pictures=frontier,
    )


def _beside_the_paper(results: ShownResults) -> Section | None:
    lead, grids = beside_the_paper(results)
    if not lead:
        return None
    parts = (Subsection("paper", grids=tuple(grids)),) if grids else ()
    alone = results.config.get("stand_in") and parts
    return Section("paper", "In the paper's layout" if alone else "Beside the paper", lead, parts)


def _per_sequence(
    results: ShownResults,
    id: str,
    title: str,
    lead: str = "",
    *,
    grids: Callable[[Sequence], list[Grid | None]] = lambda _: [],
    pictures: Callable[[Sequence, str], list[Picture]] = lambda _s, _p: [],
) -> Section | None:
    """A section with a part for each sequence of tasks; None when it would be empty."""
    several = len(results.sequences) > 1
    parts: list[Subsection] = []
    for sequence in results.sequences:
        prefix = f"{slug(sequence.name)}-" if several else ""
        shown = tuple(grid for grid in grids(sequence) if grid)
        drawn = tuple(pictures(sequence, prefix))
        if shown or drawn:
            heading = sequence.name if several else ""
            parts.append(Subsection(f"{prefix}{id}", heading, shown, drawn))
    return Section(id, title, lead, _said_once(parts)) if parts else None


def _said_once(parts: list[Subsection]) -> tuple[Subsection, ...]:
    """The parts, without captions that a part before has already."""
    said: set[str] = set()
    kept = []
    for part in parts:
        captions = {grid.caption for grid in part.grids} | {p.caption for p in part.pictures}
        again, said = captions & said, captions | said
        kept.append(
            replace(
                part,
                grids=tuple(_without(grid, again) for grid in part.grids),
                pictures=tuple(_without(picture, again) for picture in part.pictures),
            )
        )
    return tuple(kept)


Captioned = TypeVar("Captioned", Grid, Picture)


def _without(item: Captioned, captions: set[str]) -> Captioned:
    return replace(item, caption="") if item.caption in captions else item


def _failures(results: ShownResults) -> Section | None:
    """Runs that failed with what they said, and what was not run at all with the reason why."""
    failed = results.with_status("failed")
    told = [Failure(text.run_name(run), run.error or "No reason given.") for run in failed]
    skipped = results.config.get("skipped") or {}
    told += [Failure(str(name), str(reason)) for name, reason in skipped.items()]
    words = (["failed"] if failed else []) + (["was not run"] if skipped else [])
    if not told:
        return None
    return Section("failures", f"What {' or '.join(words)}", failures=tuple(told))
