"""`retain compare`, and what stands on its page."""

import signal

import pytest
from typer.testing import CliRunner

from retain.cli.app import app
from retain.experiment import Config, Results
from retain.report import summary, write
from retain.report.tables.equal_accuracy import compared, sentences
from retain.report.tables.operating_points import points
from retain.report.variants import read
from tests.cli.commands import started

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
    told = " ".join(done.output.split())
    assert "Needs" in told
    assert told.rindex("FineTune forgets") > told.rindex("low-lr-0.6-seed1")  # the answer is last
    return out


@pytest.mark.parametrize(
    "stop", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT]
)
def test_stopped_in_the_middle_it_ends_with_the_same_page(tmp_path, folder, stop):
    asked = ("--methods", "mas,replay,low-lr", "--strength", "mas=0.01:1000000", "--sweep")
    out = tmp_path / "out"
    words = ["compare", *RUN, *SHORT, *asked, "replay=0.1:0.5", "--out", out]
    with started(*words) as process:
        for line in process.stderr:
            if "replay-0.1-seed0: task 1/2" in line:
                break
        process.send_signal(stop)
        said = process.stderr.read()
        process.wait()
    assert len([r for r in Results.read(out).runs if r.status == "done"]) < 20
    if stop == signal.SIGINT:
        assert f"Go on with: retain compare --resume --out {out}\n" in said
    resumed = called("--resume", "--out", out)
    assert resumed.exit_code == 0, resumed.output
    assert "FineTune forgets" in resumed.output
    whole, again = (Results.read(one).runs for one in (folder, out))
    numbers = [
        [(r.method, r.seed, r.strength, r.knob, r.accuracy) for r in runs]
        for runs in (whole, again)
    ]
    assert numbers[0] == numbers[1]
    pages = [(one / "report.html").read_text(encoding="utf-8") for one in (folder, out)]
    first, second = (page[: page.index('id="cost"')] for page in pages)  # times differ
    assert first == second


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
    answer = page.index(">What is forgotten at equal accuracy on new tasks</h2>")
    assert answer < page.index(">How it ended</h2>")
    assert (folder / "figures" / "frontier.svg").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--strength", "mas=1"), "one value"),
        (("--methods", "replay", "--sweep", "replay=0.1"), "two different values"),
        (
            ("--methods", "freeze", "--set", "freeze.blocks=1"),
            "freeze.blocks is set to one value, 1; a comparison needs two or more: --sweep freeze=",
        ),
        (
            ("--methods", "mas", "--set", "mas.strength=2"),
            "mas.strength is set to one value, 2; a comparison needs two or more: --strength",
        ),
        (("--methods", "replay", "--sweep", "replay=0.1:1.5"), "replay.share"),
        (("--methods", "replay", "--sweep", "replay.ratio=0.1:1.5"), "knob of replay is share"),
        (("--recipe", "nowhere.py:finetune", "--methods", "mas"), "does not exist"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, given, said):
    done = called(*RUN, *SHORT, *given, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_a_single_task_leaves_nothing_to_forget_and_it_is_said(tmp_path):
    one = ("--tasks", "digits", "--classes-per-task", "10", "--samples-per-class", "8")
    done = called(*one, "--epochs", "1", "--batch-size", "8", "--methods", "model-soup",
                  "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "With a single task there is nothing to forget." in done.output


def test_without_a_wish_no_method_freezes_statistics_alone(folder):
    assert Config.from_json(read(folder).config).batch_norm == "frozen-for-all"


def made(values):
    """A comparison of what each method forgets and learns, at λ = 1, 2, … of each."""
    runs, strengths = [], {}
    for method, pairs in values.items():
        several = len(pairs) > 1
        for place, (forgotten, new) in enumerate(pairs):
            run = {"method": method, "seed": 0, "tasks": ["a", "b"], "status": "done"}
            run["strength"] = float(place + 1) if several else None
            run["accuracy"] = [[0.9, None], [0.9 - forgotten, new]]
            run |= {
                "average_forgetting": forgotten,
                "average_accuracy": (0.9 - forgotten + new) / 2,
            }
            runs.append(run)
        if several:
            strengths[method] = [float(place + 1) for place in range(len(pairs))]
    config = {"methods": list(values), "strengths": strengths}
    return {"schema": 1, "versions": {}, "config": config, "runs": runs}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"finetune": [(0.2, 0.9)], "joint": [(0.0, 0.95)], "mas": [(0.1, 0.895), (0.0, 0.8)]},
            "Joint training aside, MAS (λ = 1) forgets least at the new-task accuracy of FineTune "
            "minus 1 point: 10.0 points; FineTune 20.0.",
        ),
        (
            {"finetune": [(0.2, 0.9)], "mas": [(0.1, 0.8), (0.0, 0.7)]},
            "No method comes within 1 point of FineTune's accuracy on new tasks; FineTune forgets "
            "20.0 points.",
        ),
        (
            {"finetune": [(0.2, 0.9)], "kl": [(0.3, 0.9), (0.1, 0.7)]},
            "No method forgets less than FineTune (20.0 points) at its accuracy on new tasks minus "
            "1 point.",
        ),
    ],
)
def test_a_page_on_strengths_alone_begins_with_the_answer(tmp_path, values, said):
    results = made(values)
    assert summary(results) == said
    write(results, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What is forgotten at equal accuracy on new tasks" in page


def test_a_run_of_one_strength_each_is_no_comparison(tmp_path):
    write(made({"finetune": [(0.2, 0.9)], "mas": [(0.1, 0.8)]}), tmp_path)
    assert "equal accuracy" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_chosen_strength_is_told_as_that():
    results = made({"finetune": [(0.2, 0.9)], "mas": [(0.1, 0.9)]})
    results["runs"][1] |= {"strength": 3.0, "strength_search": [{"task": "b", "strength": 3.0}]}
    assert "MAS (λ = auto) forgets 10.0." in sentences(read(results).sequences[0])
