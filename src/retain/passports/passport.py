"""A passport: what a published model depends on, small enough to be published beside it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from retain import arguments, atomic, files
from retain.errors import FileError, InputError
from retain.header import Fields
from retain.importance import Importance
from retain.legible import legible
from retain.memory.compact import KIND, compacted, expanded, fingerprints
from retain.memory.given_data import batches_in
from retain.memory.mas import MAS
from retain.parameters import named_parameters
from retain.samples.outputs import OutputPicker

BREAK = re.compile(r"(?<=[._])(?=\w)")  # where the name of a parameter may go on in the next line
RANKED = 100_000  # weights of a layer whose ranks are compared
Card = Mapping[str, Any]


@dataclass(frozen=True)
class Passport:
    """Ω of a published model in little space, and a card that says where it comes from.

    Attributes:
        importance: Ω as the passport keeps it: products of row and column sums.
        card: plain data: the model, its hash, the data, the samples, Ω by layer, how stable it is
            between the halves of the data, what keeping it small costs, and the price in seconds.

    Examples:
        >>> made = retain.passport(model, loader, name="small", described="random numbers")
        >>> made.save("small.safetensors")
        >>> retain.passports.Passport.load("small.safetensors").write_page("small.html").name
        'small.html'
        >>> made.write_card("small.json").name
        'small.json'
    """

    importance: Importance
    card: Card
    _kept: Mapping[str, Tensor]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to `path`; `retain.load(path, model)` makes a memory of it, without any data.

        Raises:
            FileError: it cannot be written; what was there is untouched.

        Examples:
            >>> retain.passport(model, loader).save("small.safetensors")
            >>> memory = retain.load("small.safetensors", model)  # by others, who have no data
        """
        files.write(path, KIND, self._kept, dict(self.card))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Passport:
        """What `save` wrote.

        Raises:
            FileError: missing, truncated, foreign, or damaged.

        Examples:
            >>> retain.passport(model, loader, name="small").save("small.safetensors")
            >>> retain.passports.Passport.load("small.safetensors").card["name"]
            'small'
        """
        kept, card = files.read(path, KIND)
        try:
            shapes = _checked(card)
            norm = card.get("squared_norm")
            omega = Importance(expanded(kept, shapes), card["samples"], card["routes"], norm)
        except (KeyError, ValueError) as error:
            raise FileError(f"{path} is a damaged passport: {error}.") from error
        return cls(omega, card, kept)

    def __str__(self) -> str:
        card = legible(self.card)
        lines = [
            f"{card['name']}: {card['model']}, {card['parameters']:,} weights",
            f"observed: {card['samples']:,} samples of {card['data']}",
            f"stable between halves (Spearman, median over layers): {_said(card['stability'])}",
            f"kept in {card['bytes']:,} bytes; ranks as before (Spearman): "
            + _said(card["fidelity"]),
        ]
        return "\n".join(lines)

    def write_page(self, path: str | os.PathLike[str]) -> Path:
        """The card as one page of HTML, with its data in it; returns the path.

        Raises:
            FileError: it cannot be written; what was there is untouched.
            InputError: a path that is none.

        Examples:
            >>> retain.passport(model, loader).write_page("small.html").name
            'small.html'
        """
        target = arguments.path("path", path)
        atomic.write(target, _page(legible(self.card)))
        return target

    def write_card(self, path: str | os.PathLike[str]) -> Path:
        """The card as JSON, for programs and for hubs of models; returns the path.

        Raises:
            FileError: it cannot be written; what was there is untouched.
            InputError: a path that is none.

        Examples:
            >>> import json
            >>> made = retain.passport(model, loader, described="random numbers")
            >>> path = made.write_card("small.json")
            >>> json.loads(path.read_text(encoding="utf-8"))["data"]
            'random numbers'
        """
        target = arguments.path("path", path)
        atomic.write(target, json.dumps(dict(self.card), indent=2, ensure_ascii=False) + "\n")
        return target


def _checked(card: Card) -> dict[str, tuple[int, ...]]:
    """The shapes on a card, if each of its fields is as `passport` writes it.

    Raises:
        ValueError: with every field that is not.
    """
    fields = Fields(card)
    for name in ("name", "model", "data"):
        fields.text(name)
    for name in ("parameters", "samples", "bytes"):
        fields.count(name)
    fields.number("seconds")
    fields.named_texts("weights")
    fields.named_texts("routes")
    shapes = fields.shapes("shapes")
    if "squared_norm" in card:  # older passports do not have it
        fields.optional_number("squared_norm")
    fields.correlation("stability")
    fields.correlation("fidelity")
    for place, layer in enumerate(fields.mappings("layers")):
        own = Fields(layer)
        own.text("name")
        own.counts("shape")
        own.number("mean")
        own.number("share")
        own.correlation("stability")
        own.correlation("fidelity")
        fields.take(f"layers.{place}", own)
    fields.finish()
    return shapes


def passport(
    model: nn.Module,
    data: Any,
    *,
    name: str = "",
    described: str = "unlabelled data",
    output: OutputPicker | None = None,
    max_samples: int | None = None,
    progress: bool = True,
) -> Passport:
    """The passport of `model`, as it is now, from unlabelled `data`.

    Ω is computed as `retain.MAS` does, on two halves of the data (every other batch), which are
    pooled, and whose agreement says how much the data matter.

    Args:
        model: the model that is published.
        data: batches, as `observe` takes them; two at least.
        name: what the model is called.
        described: what the data are, in a few words; is printed on the card.
        output: picks F(x) from what the model returns.
        max_samples: stop after about so many.
        progress: show a bar, if there is a terminal.

    Raises:
        InputError: fewer than two batches, an output that depends on no weight, or what `observe`
            refuses.

    Examples:
        >>> card = retain.passport(model, loader, name="small", described="random numbers")
        >>> card.save("small.safetensors")
        >>> memory = retain.load("small.safetensors", model)  # by others, who have no data
    """
    arguments.optional(arguments.whole, "max_samples", max_samples, least=1)
    arguments.text("name", name)
    arguments.text("described", described)
    started = time.perf_counter()
    halves = [MAS(model, output=output), MAS(model, output=output)]
    batches = iter(batches_in(data, batch_dim=0))
    turn = _alternating(batches, halves, max_samples)
    for half, batch in turn:
        half.observe([batch], progress=progress)
    if not all(half.observed for half in halves):
        raise InputError(
            "A passport needs two batches of data at least: it compares two halves. Split what is "
            "one, such as data.split(32)."
        )
    parts = [half.observed for half in halves]
    whole = _used(Importance.pool(parts))
    if not whole:
        raise InputError(
            "The output depends on no weight of the model, so there is nothing to publish. Which "
            "output is meant? output= picks it."
        )
    seconds = time.perf_counter() - started
    kept = compacted(whole)
    shapes = {n: tuple(omega.shape) for n, omega in whole.items()}
    small = Importance(expanded(kept, shapes), whole.samples, whole.routes, whole.squared_norm)
    stable = {n: _rank_correlation(parts[0][n], parts[1][n]) for n in whole}
    faithful = {n: _rank_correlation(whole[n], small[n]) for n in whole}
    total = sum(float(omega.double().sum()) for omega in whole.values()) or 1.0
    own = named_parameters(model)
    marks = fingerprints({n: own[n] for n in whole})
    card = {
        "name": name or type(model).__name__,
        "model": type(model).__name__,
        "parameters": sum(omega.numel() for omega in whole.values()),
        "data": described,
        "samples": whole.samples,
        "seconds": round(seconds, 1),
        "stability": _median(stable.values()),
        "fidelity": _median(faithful[n] for n in whole if whole[n].ndim > 1),
        "bytes": sum(tensor.nbytes for tensor in kept.values()),
        "layers": [
            {
                "name": n,
                "shape": list(shapes[n]),
                "mean": float(whole[n].double().mean()),
                "share": float(whole[n].double().sum()) / total,
                "stability": stable[n],
                "fidelity": faithful[n],
            }
            for n in whole
        ],
        "weights": marks,
        "shapes": {n: list(shape) for n, shape in shapes.items()},
        "routes": dict(whole.routes),
        "squared_norm": whole.squared_norm,
    }
    return Passport(small, card, kept)


def _alternating(
    batches: Iterator[Any], halves: list[MAS], most: int | None
) -> Iterator[tuple[MAS, Any]]:
    for number, batch in enumerate(batches):
        yield halves[number % 2], batch
        seen = sum(half.observed.samples for half in halves if half.observed)
        if most is not None and seen >= most and number:
            return


def _used(importance: Importance) -> Importance:
    """Without the parameters that the output does not depend on at all, such as a pooling layer."""
    used = {name: omega for name, omega in importance.items() if omega.any()}
    routes = {name: importance.routes[name] for name in used if name in importance.routes}
    return Importance(used, importance.samples, routes, importance.squared_norm)


def _rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's ρ over (some of) the weights; None where all are equal."""
    every = max(1, one.numel() // RANKED)
    pair = [_ranks(t.detach().reshape(-1)[::every]) for t in (one, other)]
    a, b = (ranks - ranks.mean() for ranks in pair)
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else None


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = values.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() + 1) / 2)[inverse]
    return ranks


def _median(values: Iterable[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def _said(correlation: float | None) -> str:
    return "not known" if correlation is None else f"{correlation:.2f}"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
body {{ padding: 0 1rem; overflow-wrap: anywhere }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-size: 14px }}
th, td {{ padding: .2rem .7rem; text-align: right; white-space: nowrap }}
th, td {{ border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }}
td:first-child {{ white-space: normal; min-width: 8rem; max-width: 24rem }}
td:nth-child(5) {{ text-align: left }}
.bar {{ display: inline-block; height: .7em; background: #0072B2 }}
pre {{ white-space: pre-wrap; background: #f6f6f6; padding: .7rem }}
</style></head><body>
<h1>{title}</h1>
<p>What the output of this model depends on, weight by weight: Ω = E |∂‖F(x)‖²/∂θ|, computed without
labels. <code>retain.load(FILE, model)</code> protects the model with it, without any data.</p>
<pre>{summary}</pre>
<div class="wide"><table><thead><tr><th>parameter</th><th>shape</th><th>mean Ω</th><th>share</th>
<th></th><th>stable</th><th>kept</th></tr></thead><tbody>
{rows}
</tbody></table></div>
<p>stable: Spearman's ρ between the two halves of the data; kept: between Ω and what the file
keeps of it.</p>
</body></html>
"""


def _page(card: Card) -> str:
    largest = max((layer["share"] for layer in card["layers"]), default=1.0) or 1.0
    rows = [
        f'<tr><td title="{escape(layer["name"])}">'
        + BREAK.sub("<wbr>", escape(layer["name"]))
        + "</td>"
        + "".join(
            f"<td>{cell}</td>"
            for cell in (
                "×".join(map(str, layer["shape"])) or "scalar",
                f"{layer['mean']:.3g}",
                f"{100 * layer['share']:.1f} %",
                f'<span class="bar" style="width:{120 * layer["share"] / largest:.0f}px"></span>',
                _said(layer["stability"]),
                _said(layer["fidelity"]),
            )
        )
        + "</tr>"
        for layer in card["layers"]
    ]
    shown = Passport(Importance({}, 0), card, {})
    return PAGE.format(
        title=escape(f"{card['name']}: importance passport"),
        summary=escape(str(shown)),
        rows="\n".join(rows),
    )
