"""The page about the runner names everything that can be asked, and everything that comes out."""

from pathlib import Path

import pytest

from retain.cli.flags import fields_of, with_table
from retain.experiment import Config, Run, run
from retain.experiment.config import FIELDS
from retain.experiment.record import MEASURES
from retain.experiment.workers.crew import Workforce
from retain.methods import METHODS

from .tiny import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "runner.md").read_text(encoding="utf-8")


def section(heading):
    return PAGE.partition(f"{heading}\n")[2].partition("\n## ")[0]


def test_the_table_of_options_is_that_of_the_fields():
    """If this fails: python -m retain.cli.flags docs/runner.md."""
    assert with_table(PAGE, Config, FIELDS) == PAGE
    assert with_table(PAGE, Workforce, fields_of(Workforce), "workforce") == PAGE
    assert "`--scheduler`" in section("## Side by side")
    for name in FIELDS:
        assert f"| `{name}` |" in section("## What can be asked")


@pytest.mark.parametrize("field", [*Run.model_fields, *MEASURES])
def test_every_field_of_a_result(field):
    assert f"`{field}`" in section("### results.json").partition("\n## ")[0]


def test_every_kind_of_memory():
    results = run(tiny(methods=tuple(METHODS), samples_per_class=8), progress=False)
    kinds = {kind for record in results.runs for kind in record.memory_bytes_by_task[-1]}
    assert kinds == {"model", "importance", "anchor", "path", "teacher", "encoder", "examples"}
    assert all(f"| `{kind}` |" in section("### results.json") for kind in kinds)
