"""`retain compare`, and what stands on its page."""

import pytest
from typer.testing import CliRunner

from retain.cli.app import app
from retain.report.tables.equal_accuracy import compared, points, sentences
from retain.report.variants import read

RUN = ("--tasks", "digits", "--classes-per-task", "5", "--samples-per-class", "16")
SHORT = ("--epochs", "1", "--batch-size", "8", "--seeds", "0,1", "--device", "cpu")


def called(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    asked = ("--methods", "mas,replay,low-lr", "--strength", "mas=0.01:1000000", "--sweep")
    done = called(*RUN, *SHORT, *asked, "replay=0.1:0.5", "--out", out)
    assert done.exit_code == 0, done.output
    assert "FineTune forgets" in done.output
    return out


def test_a_sentence_a_method_also_where_it_never_gets_there(folder):
    said = sentences(read(folder).sequences[0])
    assert said.startswith("FineTune forgets ")
    assert "At that accuracy minus 1 point:" in said
    assert "MAS (λ = 0.01) forgets " in said
    assert "Low LR never gets there: " in said
    assert "eplay" in said


def test_the_table_has_what_is_needed_and_the_front_what_nothing_beats(folder):
    sequence = read(folder).sequences[0]
    found = points(sequence)
    assert len(found) == 1 + 2 + 2 + 5
    for point in found:
        beaten = any(
            other.new.mean >= point.new.mean
            and other.forgotten.mean <= point.forgotten.mean
            and (other.new.mean, other.forgotten.mean) != (point.new.mean, point.forgotten.mean)
            for other in found
        )
        assert point.front != beaten
    rows = {row[0].text: row for row in compared(sequence).rows}
    assert rows["Replay"][1].text == "old data with labels"
    assert rows["MAS"][1].text == "unlabelled old data, once"
    assert rows["Low LR"][2].text == "never gets there"


def test_the_page_shows_it(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "What is forgotten at equal accuracy on new tasks" in page
    assert (folder / "figures" / "frontier.svg").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--strength", "mas=1"), "one value"),
        (("--methods", "replay", "--sweep", "replay=0.1"), "two different values"),
        (("--methods", "replay", "--sweep", "replay=0.1:1.5"), "replay.share"),
        (("--methods", "replay", "--sweep", "replay.ratio=0.1:1.5"), "knob of replay is share"),
        (("--recipe", "nowhere.py:finetune", "--methods", "mas"), "does not exist"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, given, said):
    done = called(*RUN, *SHORT, *given, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
