"""A look at importance: a table with a row per parameter, and a picture with a row per layer."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from retain import arguments, atomic
from retain.errors import InputError
from retain.extras import needs

if TYPE_CHECKING:
    from rich.table import Table

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito: told apart by everybody
ROWS = 60  # layers in one picture; more cannot be read
DRAWN = 200_000  # weights per layer from which quantiles are taken


@dataclass(frozen=True)
class Row:
    """One parameter: the mean and the largest of its Ω, and its share of ΣΩ over all parameters."""

    name: str
    shape: tuple[int, ...]
    mean: float
    share: float
    largest: float
    route: str


@dataclass(frozen=True)
class Summary:
    """Importance parameter by parameter; prints as a table, in a terminal and as a string.

    Examples:
        >>> summary = retain.MAS(model).observe(loader).observed.summary()  # a Summary
        >>> summary.rows[0].name, summary.rows[0].route
        ('0.weight', 'linear')
    """

    rows: tuple[Row, ...]
    samples: int
    importance: Mapping[str, Tensor]
    precisions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        importance: Mapping[str, Tensor],
        samples: int,
        routes: Mapping[str, str],
        precisions: tuple[str, ...] = (),
    ) -> Summary:
        """The summary of a mapping name -> Ω."""
        sums = {name: float(omega.double().sum()) for name, omega in importance.items()}
        total = sum(sums.values())
        rows = tuple(
            Row(
                name,
                tuple(omega.shape),
                sums[name] / max(1, omega.numel()),
                sums[name] / total if total else 0.0,
                float(omega.max()) if omega.numel() else 0.0,
                routes.get(name, ""),
            )
            for name, omega in importance.items()
        )
        return cls(rows, samples, importance, precisions)

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=f"Importance over {self.samples:,} samples", title_justify="left")
        if self.precisions:
            table.caption = f"computed in {', '.join(self.precisions)}"
            table.caption_justify = "left"
        table.add_column("parameter", overflow="fold")
        for heading in ("shape", "mean", "share", "largest"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("route")
        for row in self.rows:
            shape = "×".join(map(str, row.shape)) or "scalar"
            share = f"{100 * row.share:.1f} %"
            table.add_row(
                row.name, shape, f"{row.mean:.3g}", share, f"{row.largest:.3g}", row.route
            )
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=100)
        console.print(self)
        written: str = console.file.getvalue()  # type: ignore[attr-defined]
        return written.rstrip()

    __repr__ = __str__

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw Ω per weight and share of the total, layer by layer; returns the path.

        Raises:
            FileError: it cannot be written; what was there is untouched.
            InputError: there is nothing to draw, or no such kind of picture.

        Examples:
            >>> summary = retain.MAS(model).observe(loader).observed.summary()
            >>> summary.plot("omega.svg").name
            'omega.svg'
        """
        if not self.rows:
            raise InputError("There is no importance to draw. Observe data first.")
        target = arguments.path("path", path)
        layers = _layers(self)
        figure = needs("matplotlib.figure").Figure(
            figsize=(9, 1.4 + 0.27 * len(layers)), layout="constrained"
        )
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
        _draw_means(left, layers)
        _draw_shares(right, layers)
        hidden = len(_by_layer(self)) - len(layers)
        most = f", the {len(layers)} with the largest share" if hidden else ""
        figure.suptitle(f"Importance by layer{most} ({self.samples:,} samples)", fontsize=11)
        try:
            with atomic.replacing(target) as unfinished:
                figure.savefig(unfinished, dpi=150, format=target.suffix[1:] or "png")
        except ValueError as error:  # a kind of picture that there is not
            raise InputError(f"Cannot draw to {path}: {error}.") from error
        return target


@dataclass(frozen=True)
class _Layer:
    name: str
    mean: float
    low: float
    high: float
    share: float


def _by_layer(summary: Summary) -> dict[str, list[Row]]:
    """Weight and bias of one module belong to one layer."""
    layers: dict[str, list[Row]] = {}
    for row in summary.rows:
        layers.setdefault(row.name.rpartition(".")[0] or row.name, []).append(row)
    return layers


def _layers(summary: Summary) -> list[_Layer]:
    layers = []
    for name, rows in _by_layer(summary).items():
        omega = np.concatenate([_some(summary.importance[row.name]) for row in rows])
        low, high = np.quantile(omega, [0.1, 0.9]) if omega.size else (0.0, 0.0)
        count = sum(int(np.prod(row.shape)) for row in rows)
        mean = sum(row.mean * int(np.prod(row.shape)) for row in rows) / max(1, count)
        layers.append(_Layer(name, mean, low, high, sum(row.share for row in rows)))
    kept = sorted(layers, key=lambda layer: -layer.share)[:ROWS]
    return [layer for layer in layers if layer in kept]


def _some(omega: Tensor) -> Any:
    flat = omega.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // DRAWN)].float().cpu().numpy()


def _draw_means(axes: Any, layers: list[_Layer]) -> None:
    rows = range(len(layers))
    floor = min((layer.mean for layer in layers if layer.mean > 0), default=1.0) * 1e-3
    for row, layer in zip(rows, layers):
        axes.plot([max(layer.low, floor), max(layer.high, floor)], [row, row], color=GREY, lw=1.5)
    axes.plot([max(layer.mean, floor) for layer in layers], rows, "o", color=BLUE, ms=5)
    _log_scale(axes)
    axes.set_yticks(rows, [layer.name for layer in layers], fontsize=8, parse_math=False)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel("Ω per weight: mean and middle 80 % (zero at the left edge)", fontsize=9)
    _tidy(axes)


def _draw_shares(axes: Any, layers: list[_Layer]) -> None:
    axes.barh(range(len(layers)), [100 * layer.share for layer in layers], color=ORANGE, height=0.6)
    axes.set_xlabel("share of ΣΩ (%)", fontsize=9)
    _tidy(axes)


def _log_scale(axes: Any) -> None:
    """Decades, and 2 and 5 between them where there are few: labels that never overlap."""
    ticker = needs("matplotlib.ticker")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1,) if high / low > 100 else (1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
