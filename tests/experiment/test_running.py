import dataclasses
import json

import pytest
import torch

from retain import files
from retain.errors import ConfigError, FileError, InputError
from retain.experiment import Config, Interrupted, Results, UnwrittenError, run
from retain.experiment import learner as learner_module
from retain.experiment.checkpoint import Checkpoint
from retain.experiment.progress import Watcher
from retain.methods import METHODS
from retain.methods.mas import MASMethod
from tests.test_atomic import gone, left_over

from .tiny import accuracies, tiny

HOLDING = ("ewc", "online-ewc", "si", "mas", "local-mas")


def test_every_method_fills_every_field(tmp_path):
    results = run(tiny(methods=tuple(METHODS), samples_per_class=8), out=tmp_path, progress=False)
    content = json.loads((tmp_path / "results.json").read_text())
    digest = content.pop("sha256")  # of the file, which results in memory do not have
    assert len(digest) == 64
    assert content == results.to_json()
    assert content["schema"] == 1
    assert {"retain", "torch", "python"} <= content["versions"].keys()
    assert content["config"]["scenario"] == "task-incremental"
    assert len(content["runs"]) == len(METHODS)
    for record in content["runs"]:
        assert record["status"] == "done", record["error"]
        check_record(record, METHODS[record["method"]])


def check_record(record, method):
    t = len(record["tasks"])
    assert record["tasks"] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    for i, row in enumerate(record["accuracy"]):
        assert len(row) == t
        assert all(0 <= value <= 1 for value in row[: i + 1])
        assert row[i + 1 :] == [None] * (t - i - 1)
    numbers = [
        "average_accuracy",
        "average_forgetting",
        "backward_transfer",
        "forward_transfer",
        "plasticity",
        "train_seconds",
        "importance_seconds",
        "evaluation_seconds",
    ]
    assert all(isinstance(record[name], float) for name in numbers)
    last = record["accuracy"][-1]
    for j, name in enumerate(record["tasks"]):
        check_classes(record["accuracy_by_class"][name], name, last[j])
        check_classes(record["accuracy_by_class_learned"][name], name, record["accuracy"][j][j])
    assert record["error"] is None
    assert record["strength_search"] is None
    assert (record["strength"] is not None) == method.has_strength()
    assert (record["form"] is not None) == method.has_form()
    assert record["importance_on"] == ("train" if method.chooses_data else None)
    assert len(record["memory_bytes_by_task"]) == t
    assert record["memory_bytes"] == record["memory_bytes_by_task"][-1]
    assert record["memory_bytes"]["model"] > 0
    if method.name in ("mas", "local-mas", "ewc", "online-ewc", "si"):
        layers = record["importance_by_layer"].values()
        assert sum(layer["share"] for layer in layers) == pytest.approx(1)
        for layer in layers:
            assert layer["quantiles"] == sorted(layer["quantiles"])
            assert len(layer["quantiles"]) == 7


def check_classes(by_class, task, accuracy):
    """Both classes of the task are there; each has 8 test samples."""
    assert list(by_class) == task.split("-")
    assert sum(by_class.values()) / 2 == pytest.approx(accuracy, abs=1e-5)


def test_the_report_reads_it(tmp_path):
    from retain.report.variants import read

    run(tiny(), out=tmp_path, progress=False)
    assert [r.method for r in read(tmp_path).runs] == ["finetune", "mas"]


def test_same_seed_same_numbers_whatever_the_global_state():
    torch.manual_seed(1)
    first = run(tiny(methods=("ewc", "ebll"), seeds=(5,)), progress=False)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = run(tiny(methods=("ewc", "ebll"), seeds=(5,)), progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert accuracies(first) == accuracies(second)
    other = run(tiny(methods=("ewc", "ebll"), seeds=(6,)), progress=False)
    assert [r.accuracy for r in other.runs] != [r.accuracy for r in first.runs]


def test_a_method_does_not_depend_on_those_before_it():
    together = run(tiny(methods=("ebll", "lwf", "mas")), progress=False)
    alone = run(tiny(methods=("mas",)), progress=False)
    assert together.of("mas")[0].accuracy == alone.of("mas")[0].accuracy


def test_a_method_that_fails_does_not_take_the_others_with_it(tmp_path, monkeypatch):
    def broken(self, index, sequence):
        raise ZeroDivisionError("made to fail")

    monkeypatch.setattr(MASMethod, "end", broken)
    results = run(tiny(methods=("finetune", "mas", "lwf")), out=tmp_path, progress=False)
    assert [r.status for r in results.runs] == ["done", "failed", "done"]
    assert "ZeroDivisionError: made to fail (test_running.py" in results.runs[1].error
    assert json.loads((tmp_path / "results.json").read_text())["runs"][1]["accuracy"] == []
    monkeypatch.undo()
    again = run(tiny(methods=("finetune", "mas", "lwf")), out=tmp_path, resume=True, progress=False)
    assert [r.status for r in again.runs] == ["done", "done", "done"]


def test_a_loss_that_explodes_is_a_failed_run_that_says_so():
    results = run(tiny(lr=1e20, methods=("finetune",)), progress=False)
    assert results.runs[0].status == "failed"
    assert "The loss of finetune became" in results.runs[0].error


def test_a_sweep_is_a_run_for_each_value():
    asked = tiny(methods=("mas",), strengths={"mas": (0.1, 10)}, forms=("gradient", "proximal"),
                 importance_on=("train", "test"))  # fmt: skip
    found = {(r.strength, r.form, r.importance_on) for r in run(asked, progress=False).runs}
    assert len(found) == 8


def test_strength_is_chosen_without_old_data():
    asked = tiny(methods=("mas", "lwf"), strengths={"mas": "auto", "lwf": "auto"},
                 samples_per_class=40)  # fmt: skip
    for record in run(asked, progress=False).runs:
        assert record.status == "done", record.error
        assert {one["task"] for one in record.strength_search} == {"2-3", "4-5", "6-7", "8-9"}
        for one in record.strength_search:
            # 8 of 80 samples to validate on: one more that is wrong may be noise, three are not
            assert not one["accepted"] or one["accuracy"] >= one["reference"] - 2 / 8
        assert sum(one["accepted"] for one in record.strength_search) == 4


def test_one_shared_head():
    results = run(tiny(tasks="permuted-digits=2", methods=tuple(METHODS)), progress=False)
    assert [r.error for r in results.runs] == [None] * len(METHODS)
    assert results.config.scenario == "domain-incremental"


def test_a_shared_head_is_held_like_what_is_below_it(tmp_path):
    shared = run(tiny(tasks="permuted-digits=2", methods=HOLDING), out=tmp_path, progress=False)
    own = run(tiny(methods=HOLDING), progress=False)
    for one, other in zip(shared.runs, own.runs):
        held = {name.partition(".")[0] for name in one.importance_by_layer}
        assert held == ({"backbone"} if one.method == "local-mas" else {"backbone", "heads"})
        assert {name.partition(".")[0] for name in other.importance_by_layer} == {"backbone"}
        sizes = [kinds["model"] for kinds in one.memory_bytes_by_task]
        assert sizes[0] == sizes[1]  # no head is added
        assert other.memory_bytes_by_task[0]["model"] < other.memory_bytes_by_task[1]["model"]
    for record in json.loads((tmp_path / "results.json").read_text())["runs"]:
        assert record["forward_transfer"] is not None
        assert set(record["accuracy_by_class"]) == set(record["tasks"])


def test_mean_spread_and_comparison():
    results = run(tiny(seeds=(0, 1, 2), lr=0.2, epochs=3), progress=False)
    values = [r.measures()["average_accuracy"] for r in results.of("finetune")]
    mean, sd = results.mean_sd("finetune", "average_accuracy")
    assert mean == pytest.approx(sum(values) / 3)
    assert sd == pytest.approx(torch.tensor(values).double().std().item())
    found = results.compare("mas", "finetune")
    assert found.seeds == 3
    assert found.difference == pytest.approx(results.mean_sd("mas", "average_accuracy")[0] - mean)
    with pytest.raises(InputError, match="found none"):
        results.mean_sd("si", "average_accuracy")


def test_fewer_samples_than_a_batch():
    with pytest.raises(ConfigError, match="Fewer training samples than a batch of 500: '0-1' has"):
        run(tiny(batch_size=500), progress=False)


def test_unknown_device():
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used"):
        run(tiny(device="gpu"), progress=False)


# ---- the folder ----


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    run(tiny(), out=tmp_path, progress=False)
    with pytest.raises(ConfigError, match="holds a run already, and nothing is overwritten"):
        run(tiny(), out=tmp_path, progress=False)


def test_resume_with_another_config_is_refused_with_a_diff(tmp_path):
    run(tiny(), out=tmp_path, progress=False)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ConfigError, match=r"epochs: 1 → 2; lr: 0\.05 → 0\.1"):
        run(tiny(epochs=2, lr=0.1), out=tmp_path, resume=True, progress=False)
    assert (tmp_path / "results.json").read_bytes() == before


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    first = run(tiny(), out=tmp_path, progress=False)
    assert run(tiny(), out=tmp_path, resume=True, progress=False) == first


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ConfigError, match=r"is empty\. Leave --resume out"):
        run(tiny(), out=tmp_path, resume=True, progress=False)
    with pytest.raises(ConfigError, match="does not exist"):
        run(tiny(), out=tmp_path / "nowhere", resume=True, progress=False)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files, and no results\.json"):
        run(tiny(), out=tmp_path, resume=True, progress=False)
    with pytest.raises(ConfigError, match="resume=True needs out="):
        run(tiny(), resume=True, progress=False)


@pytest.mark.parametrize("content", ['{"schema": 1, "runs": [', '{"schema": 9}', "[]", '"a"'])
def test_a_file_that_is_not_the_results_of_a_run(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(FileError, match=r"results\.json"):
        run(tiny(), out=tmp_path, resume=True, progress=False)
    assert (tmp_path / "results.json").read_text() == content


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(learner_module, "learn", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ConfigError, match="Nothing was trained"):
        run(tiny(), out=tmp_path / "file", progress=False)


def test_a_full_disk_is_found_before_training(tmp_path, monkeypatch):
    from retain.experiment import run_folder

    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match="the run may need"):
        run(tiny(), out=tmp_path, progress=False)


def test_ctrl_c_says_how_to_go_on_and_loses_nothing(tmp_path, monkeypatch):
    whole = run(tiny(), progress=False)
    real, calls = learner_module.learn, []

    def pressed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(learner_module, "learn", pressed)
    with pytest.raises(Interrupted, match=r"Go on with: retain run --resume --out"):
        run(tiny(), out=tmp_path, progress=False)
    record = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [r["status"] for r in record] == ["done", "running"]
    assert len(record[1]["accuracy"]) == 2
    monkeypatch.undo()
    assert accuracies(run(tiny(), out=tmp_path, resume=True, progress=False)) == accuracies(whole)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_reading_gives_back_what_was_written(tmp_path):
    results = run(tiny(methods=("si",)), out=tmp_path, progress=False)
    assert Results.read(tmp_path) == results


def test_a_folder_cannot_resume_a_config_that_only_differs_in_what_it_left_open(tmp_path):
    asked = tiny()
    assert asked.scenario is None
    run(asked, out=tmp_path, progress=False)
    resolved = dataclasses.replace(asked, scenario="task-incremental")
    run(resolved, out=tmp_path, resume=True, progress=False)
    assert isinstance(asked, Config)


def test_what_a_killed_run_was_writing_is_swept_away(tmp_path):
    config = Config(tasks="digits", model="mlp", methods=("finetune",), epochs=1)
    run(config, out=tmp_path, progress=False)
    left = [
        left_over(tmp_path / "results.json", gone()),
        left_over(tmp_path / "checkpoints" / "mas.safetensors", gone()),
    ]
    own = tmp_path / ".own.tmp"  # a folder may hold somebody's own files as well
    own.mkdir()
    run(config, out=tmp_path, resume=True, progress=False)
    assert not any(path.exists() for path in left)
    assert own.exists()
    assert (tmp_path / "results.json").exists()


# ---- what was damaged ----


def stopped(folder, monkeypatch, after=8):
    """A run that was stopped in the middle of its second job."""
    real, calls = learner_module.learn, []

    def pressed(*args, **kwargs):
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(learner_module, "learn", pressed)
        with pytest.raises(Interrupted):
            run(tiny(), out=folder, progress=False)
    (checkpoint,) = (folder / "checkpoints").iterdir()
    return checkpoint


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def written_again(path, tensors, record):
    files.write(path, "checkpoint", tensors, {"run": record})


def of_another_network(path):
    tensors, header = files.read(path, "checkpoint")
    tensors["network.backbone.1.weight"] = torch.zeros(2, 3)
    written_again(path, tensors, header["run"])


def with_a_nan(path):
    tensors, header = files.read(path, "checkpoint")
    next(t for name, t in tensors.items() if name.startswith("network.")).view(-1)[0] = torch.nan
    written_again(path, tensors, header["run"])


def of_another_job(path):
    tensors, header = files.read(path, "checkpoint")
    written_again(path, tensors, header["run"].replace('"seed": 0', '"seed": 1'))


def with_another_bit(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


DAMAGES = [
    cut_off, of_another_network, with_a_nan, of_another_job, with_another_bit,
    lambda path: path.write_bytes(b""),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_time_and_nothing_else(tmp_path, monkeypatch, damage):
    damage(stopped(tmp_path, monkeypatch))
    said = []

    class Listener(Watcher):
        def say(self, line):
            said.append(line)

    resumed = run(tiny(), out=tmp_path, resume=True, progress=Listener())
    assert accuracies(resumed) == accuracies(run(tiny(), progress=False))
    (line,) = [line for line in said if "checkpoint" in line]
    assert line.startswith(
        "mas-1.0-adaptive-train-seed0: started again, because its checkpoint cannot"
    )
    (aside,) = (tmp_path / "checkpoints").iterdir()
    assert aside.suffix == ".damaged"
    assert str(aside) in line


def test_a_damaged_file_of_results_says_what_to_do(tmp_path):
    run(tiny(methods=("finetune",)), out=tmp_path, progress=False)
    cut_off(tmp_path / "results.json")
    with pytest.raises(FileError, match="remove it: what it held can be computed again"):
        run(tiny(methods=("finetune",)), out=tmp_path, resume=True, progress=False)


def test_results_of_a_newer_version_are_not_called_damaged(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 9}')
    with pytest.raises(
        FileError, match=r"has schema 9, but this version of retain reads schemas up to 1"
    ):
        Results.read(tmp_path)


@pytest.mark.parametrize("target", [Results, Checkpoint])
def test_a_disk_that_fills_up_while_training(tmp_path, monkeypatch, target):
    whole = accuracies(run(tiny(), progress=False))
    method = "write" if target is Results else "save"
    real, calls = getattr(target, method), []

    def full(*args):
        calls.append(1)
        if len(calls) == 4:
            raise FileError("Cannot write it: [Errno 28] No space left on device.")
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(target, method, full)
        with pytest.raises(UnwrittenError, match=r"No space left.*What was finished is in.*resume"):
            run(tiny(), out=tmp_path, progress=False)
    assert accuracies(run(tiny(), out=tmp_path, resume=True, progress=False)) == whole
