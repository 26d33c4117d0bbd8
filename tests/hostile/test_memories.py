"""Short runs of the fuzzers of files and of the API; the long ones are commands."""

from tests.hostile.api import try_calls
from tests.hostile.memories import try_files

NEVER = (
    *("foreign traceback", "accepted with another value", "weights that are not finite"),
    "refused without a sentence",
)


def test_files_that_were_damaged_or_forged(tmp_path, recwarn):
    tally = try_files(150, 7, tmp_path)
    assert not [kind for kind in NEVER if tally[kind]], tally.kept
    assert tally["refused"] > 100


def test_arguments_that_nobody_should_give(tmp_path, recwarn, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what is asked to be written somewhere is
    tally = try_calls(250, 7, tmp_path)
    assert not [kind for kind in NEVER if tally[kind]], tally.kept
    assert tally["refused"] > 150
