"""Every block of the page about texts runs, in order, without a warning."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tokens.md"


def test_the_blocks_of_the_page_run(capfd):
    pytest.importorskip("transformers")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 8
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(padded|mask|samples_of|packed)")
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
