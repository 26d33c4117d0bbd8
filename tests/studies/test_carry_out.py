"""A study carried out: written, interrupted, resumed, and what could not be run."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from retain import report
from retain.errors import ConfigError, FileError, StateError
from retain.experiment import Config, Interrupted, Results, WorkersLostError
from retain.experiment import run as run_config
from retain.experiment.progress import Watcher
from retain.experiment.workers.processes import Processes
from retain.studies import Asked, Study, carry_out, gather, is_study, study_named
from retain.studies import run as running
from retain.studies.run import AllParts
from retain.studies.study_folder import part_folder, recorded


def tiny(name="table3", parts=2, **asked):
    """A study of digits with few samples, few parts and one seed."""
    study = study_named(name, Asked("digits", seeds=(0,), epochs=1, device="cpu", **asked))
    few = [
        dataclasses.replace(
            part, config=dataclasses.replace(part.config, samples_per_class=4, batch_size=8)
        )
        for part in study.parts
    ]
    return dataclasses.replace(study, parts=tuple(few[:parts]))


def numbers(folder):
    runs = json.loads((folder / "results.json").read_text())["runs"]
    return [(r["part"], r["method"], r["importance_on"], r["accuracy"]) for r in runs]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    study = tiny()
    assert carry_out(study, out, progress=False).study == study
    return study, out


def test_one_file_holds_the_runs_of_all_parts(finished):
    study, out = finished
    content = json.loads((out / "results.json").read_text())
    assert {run["part"] for run in content["runs"]} == {part.name for part in study.parts}
    assert len(content["runs"]) == 2 * 6
    assert content["config"]["study"] == "table3"
    assert content["config"]["waiting"] == []
    assert content["config"]["lr"] == study.parts[0].config.lr
    assert "class_order_seed" not in content["config"]  # it differs between the parts
    assert is_study(out)
    assert recorded(out) == study


def test_the_report_can_be_made_from_the_parts_alone(finished, tmp_path):
    _, out = finished
    page = report.write(out)[0].read_bytes()
    (out / "results.json").unlink()
    (out / "report.html").unlink()
    gather(out)
    assert report.write(out)[0].read_bytes() == page
    moved = tmp_path / "results.json"
    moved.write_bytes((out / "results.json").read_bytes())
    assert report.write(moved)[0].read_bytes() == page


def test_the_report_is_given_the_results_that_the_study_already_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(Results, "read", lambda *_: pytest.fail("read what was just written"))
    carried = carry_out(tiny(parts=1), tmp_path, progress=False)
    page = report.write(carried.content, tmp_path / "now")[0].read_bytes()
    monkeypatch.undo()
    assert report.write(tmp_path, tmp_path / "later")[0].read_bytes() == page


def test_it_is_not_started_over_another(finished):
    study, out = finished
    with pytest.raises(ConfigError, match=r"holds a study already.*--resume"):
        carry_out(study, out)
    with pytest.raises(ConfigError, match=r"holds a study already.*--resume"):
        run_config(Config("digits"), out=out, progress=False)
    other = tiny(strengths={"mas": 5.0})
    with pytest.raises(ConfigError, match=r"other options.*strengths"):
        carry_out(other, out, resume=True)
    with pytest.raises(ConfigError, match=r"study: table3 → table2"):
        carry_out(tiny("table2"), out, resume=True)


def test_resuming_what_is_finished_changes_nothing(finished):
    _, out = finished
    before = numbers(out)
    carry_out(None, out, resume=True, progress=False)
    assert numbers(out) == before


class Impatient(Watcher):
    """Stops the work after some steps, as Ctrl-C would."""

    def __init__(self, steps):
        self.steps = steps

    def step(self, loss):
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [5, 25, 40])
def test_an_interrupted_study_resumes_to_the_same_numbers(finished, tmp_path, monkeypatch, steps):
    study, out = finished
    with monkeypatch.context() as patched:
        patched.setattr("retain.studies.run.watcher", lambda _: Impatient(steps))
        with pytest.raises(Interrupted, match="retain study table3 --resume --out"):
            carry_out(study, tmp_path)
    stopped = json.loads((tmp_path / "results.json").read_text())
    assert len(stopped["runs"]) < len(numbers(out)) or stopped["runs"][-1]["status"] == "running"
    report.write(tmp_path)
    carry_out(None, tmp_path, resume=True, progress=False)
    assert numbers(tmp_path) == numbers(out)


def test_a_part_that_cannot_be_run_says_why_and_the_others_go_on(tmp_path):
    study = tiny()
    first = study.parts[0]
    greedy = dataclasses.replace(first, config=dataclasses.replace(first.config, batch_size=4000))
    study = dataclasses.replace(study, parts=(greedy, study.parts[1]))
    carried = carry_out(study, tmp_path, progress=False).study
    assert [part.name for part in carried.parts] == [study.parts[1].name]
    assert "Fewer training samples" in carried.skipped[first.name]
    content = json.loads((tmp_path / "results.json").read_text())
    assert "Fewer training samples" in content["config"]["skipped"][first.name]
    assert "Fewer training samples" in report.write(tmp_path)[0].read_text()


def test_a_study_of_which_nothing_can_be_run_is_an_error(tmp_path):
    (part, *_) = tiny().parts
    greedy = dataclasses.replace(part, config=dataclasses.replace(part.config, batch_size=4000))
    with pytest.raises(ConfigError, match="Fewer training samples"):
        carry_out(dataclasses.replace(tiny(), parts=(greedy,)), tmp_path, progress=False)


def test_weights_that_do_not_fit_are_listed_before_anything_is_written(tmp_path):
    torch.save({"layers.0.weight": torch.zeros(3, 3)}, tmp_path / "w.pt")
    study = tiny(weights=str(tmp_path / "w.pt"))
    with pytest.raises(FileError, match=r"missing(.|\n)*layers.2.weight(.|\n)*misshapen"):
        carry_out(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Nothing was trained"):
        carry_out(tiny(), tmp_path / "file" / "out")


@pytest.mark.parametrize("content", ["", '{"schema": 1', "[]", '{"schema": 1}', '{"schema": 9}'])
def test_a_broken_record_is_told(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises((FileError, ConfigError), match=r"schema|record of a study|ends in"):
        carry_out(None, tmp_path, resume=True)


def test_a_broken_part_is_named(finished, tmp_path):
    study, _ = finished
    carry_out(study, tmp_path / "new", progress=False)
    broken = part_folder(tmp_path / "new", study.parts[0]) / "results.json"
    broken.write_text(broken.read_text()[:200])
    with pytest.raises(FileError, match="ends in the middle"):
        gather(tmp_path / "new")


class Heard(Watcher):
    """Remembers how many steps it was told to expect, and what was said."""

    def __init__(self):
        self.total, self.said = 0, []

    def start(self, steps):
        self.total = steps

    def more(self, steps):
        self.total += steps

    def say(self, line):
        self.said.append(line)


def test_time_left_counts_parts_that_were_not_begun():
    heard = Heard()
    whole = AllParts(heard, 3)
    whole.begin("a")
    whole.start(10)
    assert heard.total == 30
    whole.more(2)  # a strength is being searched for
    assert heard.total == 36
    for _ in range(12):
        whole.step(torch.tensor(0.0))
    whole.end()
    assert heard.said == ["a (part 1 of 3)", "1 of 3 parts done, about 0 s left"]
    whole.begin("b")
    whole.start(24)
    assert heard.total == 12 + 24 + 18
    whole.begin("c")
    whole.start(6)
    assert heard.total == 12 + 24 + 6


def test_a_study_that_is_not_one():
    with pytest.raises(ConfigError, match="not the record of a study"):
        Study.from_json({"study": "table2"})


def test_a_disk_that_fills_up_stops_the_study_and_leaves_no_part_out(tmp_path, monkeypatch):
    study, out = tiny(), tmp_path / "out"
    real, calls = Results.write, []

    def full(self, folder):
        calls.append(1)
        if len(calls) == 5:
            raise FileError("Cannot write it: [Errno 28] No space left on device.")
        return real(self, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Results, "write", full)
        with pytest.raises(FileError, match=r"No space left.*retain study table3 --resume") as told:
            carry_out(study, out, progress=False)
    assert "retain run" not in str(told.value)
    assert recorded(out) == study
    assert carry_out(None, out, resume=True, progress=False).study == study
    assert len(numbers(out)) == 2 * 6


def test_a_damaged_record_of_a_study_costs_none_of_what_is_done(tmp_path, monkeypatch):
    study, out = tiny(parts=1), tmp_path / "out"
    carry_out(study, out, progress=False)
    before = numbers(out)
    (out / "study.json").write_text('{"schema": 1, "na')
    with pytest.raises(FileError, match=r"remove it and results\.json beside it"):
        carry_out(None, out, resume=True, progress=False)
    for name in ("study.json", "results.json"):
        (out / name).unlink()
    monkeypatch.setattr(running, "run_config", lambda *_, **__: pytest.fail("ran again"))
    carry_out(study, out, progress=False)
    assert numbers(out) == before


def test_two_processes_carry_out_a_study_to_the_same_numbers(finished, tmp_path):
    study, out = finished
    assert carry_out(study, tmp_path / "two", progress=False, workers=2).study == study
    assert numbers(tmp_path / "two") == numbers(out)
    assert [one.name for one in (tmp_path / "two" / "parts").rglob("*") if one.is_file()] == [
        "results.json"
    ] * 2


def test_a_study_without_workers_is_not_one_whose_parts_cannot_be_run(tmp_path, monkeypatch):
    def lost(*_):
        raise StateError("The scheduler tcp://a:1 is gone.")

    monkeypatch.setattr(Processes, "carry_out", lost)
    study = tiny()
    with pytest.raises(WorkersLostError, match=r"is gone.*retain study table3 --resume"):
        carry_out(study, tmp_path / "out", progress=False, workers=2)
    assert recorded(tmp_path / "out") == study
