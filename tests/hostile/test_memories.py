"""Short runs of the fuzzers of files and of the API; the long ones are commands."""

from tests.hostile.api import try_calls
from tests.hostile.memories import try_files
from tests.hostile.targets import everything_public, targets

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
    tally = try_calls(500, 7, tmp_path)
    assert not [kind for kind in NEVER if tally[kind]], tally.kept
    assert tally["refused"] > 300


def test_everything_public_is_called():
    names = [target.name for target in targets()]
    assert set(everything_public()) - set(names) == set()
    assert len(set(names)) == len(names)
    assert {"MAS.forecast", "Importance.pool", "integrations.peft.LoraPenalty.load"} <= set(
        everything_public()
    )


def test_every_target_works_as_it_is(tmp_path, recwarn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    always = {"SI.observe", "SI.forecast", "MAS.attach of SparseAdam", "studies.gather"}
    for target in targets():
        call, given = target.make(tmp_path)
        if target.name in always:  # refused, whatever they are given
            continue
        found = call(**given)
        if hasattr(found, "__enter__"):
            with found:
                pass
