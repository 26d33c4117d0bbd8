"""Writes the ledger, every figure beside its target, and its pictures, from what was measured.

    python benchmarks/report.py [--results benchmarks/results] [--out benchmarks/results/ledger.md]

The prose is in ledger.md.j2; why a target is missed is in limits.md, one section for each
reason, under a heading that says for which work and models it holds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from growth import CURVES, pictures
from importance import FIRST_PEAK, FIRST_TARGET, GAIN, MEMORY_TARGET, PEAK, gains
from local import OBSERVE, SERVE
from records import Row, read
from ways import OTHERS

HERE = Path(__file__).parent
NAMES = ("importance", "penalty", "local", "run", "startup", "growth")


@dataclass(frozen=True)
class Limit:
    """Why a target is missed: a paragraph, and patterns of the work and the models it is about."""

    work: str
    models: tuple[str, ...]
    text: str

    def explains(self, row: Row) -> bool:
        """Whether the row is one that the paragraph is about."""
        return fnmatchcase(row.work, self.work) and any(
            fnmatchcase(row.model, model) for model in self.models
        )


def limits(file: Path) -> list[Limit]:
    """The sections of a file: `## work | model; model`, and a paragraph or more."""
    found = []
    for section in file.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        work, _, models = heading.partition(" | ")
        named = tuple(model.strip() for model in models.split(";"))
        found.append(Limit(work.strip(), named, text.strip()))
    return found


def judged(row: Row | None) -> str:
    """The number, with a mark for met or missed."""
    if row is None:
        return ""
    if row.measured is None:
        return "—"
    mark = {True: " ✓", False: " ✗", None: ""}[row.met]
    digits = 3 if row.unit == "s" else 2 if abs(row.measured) < 10 else 1
    number = f"{row.measured:.{digits}f}"
    return f"**{number}**{mark}" if row.met is False else f"{number}{mark}"


def by_work(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Model → work → row."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.model, {})[row.work] = row
    return found


def reasons(rows: Iterable[Row]) -> list[str]:
    """Why other ways could not run: a line for each reason, with the models that it stopped."""
    met: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.measured is None and row.reason:
            met.setdefault((row.work, row.reason), []).append(row.model.split(", n =")[0])
    return [f"{work} — {', '.join(models)}: `{why}`" for (work, why), models in met.items()]


def explained(rows: Sequence[Row], known: Sequence[Limit]) -> tuple[list[Limit], list[Row]]:
    """The paragraphs that apply, and the missed targets that no paragraph is about."""
    missed = [row for row in rows if row.met is False]
    used = [limit for limit in known if any(limit.explains(row) for row in missed)]
    alone = [row for row in missed if not any(limit.explains(row) for limit in used)]
    return used, alone


def heading(limit: Limit, rows: Sequence[Row]) -> str:
    """What was missed, with the numbers."""
    missed = [row for row in rows if row.met is False and limit.explains(row)]
    told = (f"{row.model}: {row.measured:.2f} ({row.goal})" for row in missed)
    works = dict.fromkeys(row.work for row in missed)
    return f"{' / '.join(works)} — {'; '.join(told)}"


def growths(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Curve → for each of its ways, how it grows, in words."""
    found: dict[str, list[str]] = {}
    for curve in CURVES:
        own = [row for row in rows if row.model == curve.name and row.measured is not None]
        for work in dict.fromkeys(row.work for row in own):
            points = sorted((row.at or 0.0, row.measured or 0.0) for row in own if row.work == work)
            if curve.name == "memory":
                told = ", ".join(f"{y:.2f} at n = {x:g}" for x, y in points)
            else:
                (low, first), (high, last) = points[0], points[-1]
                told = f"{first:.3g} ms at {low:.3g}, {last:.3g} ms at {high:.3g}"
                told += f"; from half-way on ∝ x^{exponent(points[len(points) // 2 - 1 :]):.2f}"
            found.setdefault(curve.name, []).append(f"{work}: {told}")
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of a straight line through the logarithms."""
    x, y = zip(*((math.log(a), math.log(b)) for a, b in points))
    return statistics.linear_regression(x, y).slope


def machines(about: Mapping[str, Mapping[str, object]]) -> dict[str, list[str]]:
    """Each machine with its versions in a line → the benchmarks that were run on it."""
    found: dict[str, list[str]] = {}
    for name, one in about.items():
        if not one:
            continue
        versions = one.get("versions") or {}
        assert isinstance(versions, Mapping)
        listed = ", ".join(f"{package} {version}" for package, version in versions.items())
        told = f"{one.get('machine')}; {one.get('threads')} threads; {listed}"
        found.setdefault(told, []).append(f"`{name}.py` ({one.get('date')})")
    return found


def main() -> None:
    """Read, draw, write; say which missed target has no paragraph."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--results", type=Path, default=HERE / "results")
    options.add_argument("--out", type=Path, default=HERE / "results" / "ledger.md")
    options.add_argument("--limits", type=Path, default=HERE / "limits.md")
    given = options.parse_args()
    kept = {name: read(given.results / f"{name}.json") for name in NAMES}
    rows = {name: found for name, (_, found) in kept.items()}
    rows["importance"] += gains(rows["importance"])
    judged_rows = [row for name in NAMES[:-1] for row in rows[name]]
    used, alone = explained(judged_rows, limits(given.limits))
    drawn = pictures(rows["growth"], given.out.parent / "pictures")
    template = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    ).get_template("ledger.md.j2")  # fmt: skip
    text = template.render(
        met=sum(row.met is True for row in judged_rows),
        targets=sum(row.met is not None for row in judged_rows),
        models=by_work(rows["importance"]),
        protection=rows["penalty"],
        local=by_work(rows["local"]),
        whole=rows["run"] + rows["startup"],
        missed=[(heading(limit, judged_rows), limit.text) for limit in used],
        unexplained=alone,
        reasons=reasons(rows["importance"]),
        growth={curve.name: curve for curve in CURVES},
        growths=growths(rows["growth"]),
        pictures=[f"pictures/{file.name}" for file in drawn],
        machines=machines({name: about for name, (about, _) in kept.items()}),
        others=list(OTHERS),
        judged=judged,
        GAIN=GAIN, PEAK=PEAK, FIRST_PEAK=FIRST_PEAK, OBSERVE=OBSERVE, SERVE=SERVE,
        FIRST_TARGET=FIRST_TARGET, MEMORY_TARGET=MEMORY_TARGET,
    )  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text, encoding="utf-8")
    print(f"{given.out}: {sum(row.met is True for row in judged_rows)} targets met")
    if alone:
        told = "; ".join(f"{row.work}, {row.model}: {row.measured:.2f}" for row in alone)
        raise SystemExit(f"Missed, and limits.md does not say why: {told}.")


if __name__ == "__main__":
    main()
