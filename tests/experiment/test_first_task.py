"""The first task, trained once for all methods that learn it as fine-tuning does."""

import json

import pytest
import torch

from retain.experiment import Results, run
from retain.experiment import learner as learner_module
from retain.experiment.train import FirstTasks
from retain.methods import METHODS

from .tiny import tiny

# Batch-norm has statistics, dropout draws in every step, and the last batch is a smaller one.
MODEL = """
from torch import nn


def made():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 10),
    )
"""
APART = ("joint", "si")


def without_times(results):
    content = json.loads(json.dumps(results.to_json()))
    for record in content["runs"]:
        for name in ("train_seconds", "importance_seconds", "evaluation_seconds"):
            del record[name]
    return content


def asked(tmp_path, **more):
    (tmp_path / "model.py").write_text(MODEL)
    given = {
        "methods": tuple(METHODS),
        "model": f"{tmp_path / 'model.py'}:made",
        "classes_per_task": 5,
        "batch_size": 12,
    }
    return tiny(**{**given, **more})


def trained(monkeypatch):
    """The (method, task) of every training, in order."""
    seen, real = [], learner_module.learn

    def learn(method, index, *args, **kwargs):
        seen.append((method.name, index))
        real(method, index, *args, **kwargs)

    monkeypatch.setattr(learner_module, "learn", learn)
    return seen


@pytest.mark.parametrize("batch_norm", ["frozen", "moving"])
def test_every_number_is_that_of_a_training_of_its_own(tmp_path, monkeypatch, batch_norm):
    config = asked(tmp_path, seeds=(0, 1), batch_norm=batch_norm)
    seen = trained(monkeypatch)
    once = run(config, progress=False)
    assert [r.error for r in once.runs] == [None] * len(once.runs)
    first = [name for name, index in seen if index == 0]
    assert first == ["finetune", *APART] * 2
    monkeypatch.setattr(FirstTasks, "keep", lambda *_: None)
    seen.clear()
    each = run(config, progress=False)
    assert [name for name, index in seen if index == 0] == list(METHODS) * 2
    assert without_times(once) == without_times(each)


def test_the_seconds_of_the_training_count_for_all_that_use_it(monkeypatch):
    monkeypatch.setattr(FirstTasks, "keep", slow_keep(FirstTasks.keep))
    results = run(tiny(methods=("finetune", "low-lr", "si"), classes_per_task=5), progress=False)
    finetune, low_lr, si = (record.train_seconds for record in results.runs)
    assert low_lr > 100
    assert si < 100
    assert finetune < 100


def slow_keep(real):
    return lambda self, seed, network, seconds: real(self, seed, network, seconds + 100)


def test_a_stopped_run_ends_with_the_same_numbers(tmp_path, monkeypatch):
    config = asked(tmp_path, methods=("finetune", "mas", "lwf"))
    whole = run(config, progress=False)
    real = learner_module.learn

    def stopped(method, index, *args, **kwargs):
        if (method.name, index) == ("mas", 1):
            raise KeyboardInterrupt
        real(method, index, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(learner_module, "learn", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config, out=tmp_path / "out", progress=False)
    seen = trained(monkeypatch)
    run(config, out=tmp_path / "out", resume=True, progress=False)
    assert seen == [("mas", 1), ("lwf", 0), ("lwf", 1)]
    assert without_times(Results.read(tmp_path / "out"))["runs"] == without_times(whole)["runs"]


def test_a_first_task_that_fails_is_not_passed_on():
    results = run(tiny(lr=1e20, methods=("finetune", "low-lr")), progress=False)
    assert ["The loss of finetune" in r.error for r in results.runs] == [True, False]
    assert "The loss of low-lr" in results.runs[1].error


def statistics_of(config, name):
    """The running means of a method's network when each of its tasks has been learned."""
    found = []
    real = METHODS[name].end

    def end(self, index, sequence):
        state = self.network.state_dict().items()
        found.append(torch.cat([t.clone() for n, t in state if "running_mean" in n]))
        real(self, index, sequence)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(METHODS[name], "end", end)
        results = run(config, progress=False)
    assert [r.error for r in results.runs] == [None]
    return found


@pytest.mark.parametrize("name", ["finetune", "joint", "lwf", "replay", "ebll", "mas"])
def test_statistics_are_frozen_for_all(tmp_path, name):
    config = asked(tmp_path, methods=(name,), batch_norm="frozen-for-all")
    first, last = statistics_of(config, name)
    assert torch.equal(first, last)
    assert first.abs().sum() > 0
    moving = statistics_of(asked(tmp_path, methods=(name,), batch_norm="moving"), name)
    assert not torch.equal(*moving)
