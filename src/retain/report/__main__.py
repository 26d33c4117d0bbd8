"""A report of a stored sample run, to see what one looks like: `python -m retain.report [OUT]`."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console

from retain import report

OUT = Path("retain-sample-report")


def sample() -> dict[str, Any]:
    """The stored run: real numbers of scikit-learn's digits, marked as a sample."""
    text = files("retain.report").joinpath("sample.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def main(out: Path) -> None:
    """Print the sample's table and sentence, and write its page into `out`."""
    console = Console()
    console.print(report.table(sample()))
    console.print(report.summary(sample()))
    console.print(f"SAMPLE page: {report.write(sample(), out)[0]}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
