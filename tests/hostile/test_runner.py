"""Short runs of the fuzzers of run folders and command lines; the long ones are commands."""

from __future__ import annotations

import pytest

from tests.hostile import commands, results, studies, weights

NEVER = (
    *("foreign traceback", "accepted with another value", "another exit code"),
    *("weights that are not finite", "code ran", "written elsewhere"),
)


@pytest.fixture(autouse=True)
def _quiet(recwarn: pytest.WarningsRecorder) -> None:
    """What warnings say is not what is looked at."""


@pytest.mark.parametrize(
    "tried",
    [results.try_results, results.try_checkpoints, studies.try_studies, weights.try_weights],
)
def test_files_that_were_changed_or_damaged(tried, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # what a repair writes
    tally = tried(60, 7, tmp_path / "here")
    assert not [kind for kind in NEVER if tally[kind]], tally.kept
    assert tally["refused"] > 30


def test_command_lines_that_nobody_should_give(tmp_path):
    tally = commands.try_commands(60, 7, tmp_path)
    assert not [kind for kind in NEVER if tally[kind]], tally.kept
    assert tally["refused"] > 20
    assert tally["carried out"] > 0
