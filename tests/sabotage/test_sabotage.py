"""Every way to lose protection ends protected, or with a message before the second step."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import memories, models, optimizers, parameters  # noqa: F401  (they register cases)
from .__main__ import summary, table
from .cases import CASES
from .scene import THERE, TOLD


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_protection_is_there_or_a_message_comes(case, record_property):
    outcome = case.outcome()
    record_property("sabotage", outcome if outcome in (THERE, TOLD) else "undetected")
    assert outcome == (THERE if case.says is None else TOLD)


def test_the_page_has_every_way_and_the_count():
    page = Path(__file__).parents[2] / "docs" / "reliability.md"
    expected = {case.key: THERE if case.says is None else TOLD for case in CASES}
    assert summary(expected) in page.read_text(encoding="utf-8")
    assert table(expected) in page.read_text(encoding="utf-8")
