"""A table before it is drawn: on the page, in a terminal, as CSV or as LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """What a cell says; `value` is what it sorts by, `mark` says how it is shown.

    Marks: best, quiet, bad, repeat (the same as above, so seen by machines only), or none.
    """

    text: str
    value: float | None = None
    mark: str = ""


UNKNOWN = Cell("–", mark="quiet")


@dataclass(frozen=True)
class Grid:
    """A table: the first `heads` cells of a row are its name, the others are numbers or notes."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    heads: int = 1
    groups: tuple[tuple[str, int], ...] = ()  # headings above the columns, and how many they span
    sortable: bool = False

    def csv(self) -> str:
        """The table as CSV, the headings above the columns joined to them."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.full_columns())
        writer.writerows([cell.text for cell in row] for row in self.rows)
        return text.getvalue()

    def latex(self) -> str:
        """The table as a LaTeX tabular in the style of booktabs, the best of a column in bold."""
        lines = [
            "% \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{'l' * self.heads}{'r' * (len(self.columns) - self.heads)}}}",
            "\\toprule",
        ]
        if self.groups:
            over = [f"\\multicolumn{{{n}}}{{c}}{{{_tex(name)}}}" for name, n in self.groups]
            lines.append(" & ".join(over) + " \\\\")
        lines.append(" & ".join(_tex(column) for column in self.columns) + " \\\\")
        lines.append("\\midrule")
        lines += [" & ".join(_tex_cell(cell) for cell in row) + " \\\\" for row in self.rows]
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])

    def full_columns(self) -> list[str]:
        """Each column's name with the heading that stands above it."""
        above = [name for name, n in self.groups for _ in range(n)] or [""] * len(self.columns)
        return [f"{a}: {column}" if a else column for a, column in zip(above, self.columns)]


_TEX = {
    "\\": "\\textbackslash{}",
    "−": "$-$",
    "±": "$\\pm$",
    "→": "$\\rightarrow$",
    "λ": "$\\lambda$",
    "Ω": "$\\Omega$",
    "–": "--",
    "·": "$\\cdot$",
    "…": "\\ldots{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _tex_cell(cell: Cell) -> str:
    if cell.mark == "repeat":
        return ""
    return f"\\textbf{{{_tex(cell.text)}}}" if cell.mark == "best" else _tex(cell.text)
