"""What the paper's protocol asks of a run: schedule, precision, dropout, classes for importance."""

import dataclasses

import pytest
import torch
from torch import nn

from retain.errors import ConfigError
from retain.experiment import run
from retain.experiment import train as training_module
from retain.experiment.machine import Autocast
from retain.methods.mas import MASMethod
from retain.methods.method import Setting
from retain.models import TaskNetwork
from retain.tasks import load_tasks

from .tiny import accuracies, tiny

CPU = torch.device("cpu")


def made(asked):
    """The MAS methods that a run ends with, beside its results."""
    methods = []
    real = MASMethod.end

    def end(self, index, sequence):
        methods.append(self)
        real(self, index, sequence)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MASMethod, "end", end)
        results = run(asked, progress=False)
    assert [r.error for r in results.runs] == [None] * len(results.runs)
    return methods, results


def rates_of(asked, monkeypatch):
    """The learning rate of every step."""
    rates = []

    class Noting(torch.optim.SGD):
        def step(self, *args, **kwargs):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    monkeypatch.setattr(training_module.torch.optim, "SGD", Noting)
    run(asked, progress=False)
    return rates


def test_the_learning_rate_drops_anew_in_each_task(monkeypatch):
    asked = tiny(methods=("finetune",), epochs=5, lr=0.1, lr_drop_every=2, classes_per_task=5)
    rates = rates_of(asked, monkeypatch)
    steps = 10  # 5 classes of 16 samples in batches of 8
    epochs = [rate for rate in (0.1, 0.1, 0.01, 0.01, 0.001) for _ in range(steps)]
    assert rates == pytest.approx(epochs * 2)


def test_without_drops_the_learning_rate_stays(monkeypatch):
    rates = rates_of(tiny(methods=("finetune",), epochs=3, lr=0.1), monkeypatch)
    assert set(rates) == {0.1}


# ---- mixed precision ----


def test_mixed_precision_learns_and_leaves_importance_whole():
    asked = tiny(methods=("mas",), epochs=5, classes_per_task=5)
    (_, whole), (methods, mixed) = made(asked), made(dataclasses.replace(asked, amp=True))
    learned = [results.runs[0].measures()["plasticity"] for results in (whole, mixed)]
    assert learned[1] == pytest.approx(learned[0], abs=0.05)
    assert mixed.runs[0].importance_by_layer != whole.runs[0].importance_by_layer
    for tensors in (methods[-1].importance().values(), methods[-1].network.parameters()):
        assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_forward_passes_are_lowered_and_importance_is_not(monkeypatch):
    seen = []
    real = TaskNetwork.features

    def features(self, inputs):
        found = real(self, inputs)
        seen.append((self.training, found.dtype))
        return found

    monkeypatch.setattr(TaskNetwork, "features", features)
    run(tiny(methods=("mas",), amp=True), progress=False)
    training = {dtype for is_training, dtype in seen if is_training}
    measuring = {dtype for is_training, dtype in seen if not is_training}
    assert training == {torch.bfloat16}
    assert measuring == {torch.bfloat16, torch.float32}  # evaluation, importance


def test_every_method_runs_in_mixed_precision():
    from retain.methods import METHODS

    results = run(tiny(methods=tuple(METHODS), samples_per_class=8, amp=True), progress=False)
    assert [r.error for r in results.runs] == [None] * len(METHODS)


def test_scaled_gradients_reach_what_is_attached_as_they_are(monkeypatch):
    # The scaling that CUDA needs, done on the CPU: it may change rounding and nothing else.
    asked = tiny(methods=("mas", "si"), forms=("gradient",))
    plain = run(asked, progress=False)
    made_scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        Autocast, "scaler", lambda _: made_scaler("cpu", enabled=True, init_scale=2.0**10)
    )
    scaled = run(asked, progress=False)
    assert [r.error for r in scaled.runs] == [None, None]
    for a, b in zip(plain.runs, scaled.runs):
        assert b.measures()["average_accuracy"] == pytest.approx(
            a.measures()["average_accuracy"], abs=0.01
        )


def test_what_scales_gradients_skips_steps_in_the_open():
    config = tiny(amp=True)
    assert Autocast(True, torch.device("cuda")).scales
    assert not Autocast(False, torch.device("cuda")).scales
    assert not Autocast(True, CPU).scales
    parameter = [nn.Parameter(torch.ones(1))]
    assert training_module.optimizer_maker(config, CPU)(parameter).defaults["fused"]
    on_cuda = training_module.optimizer_maker(config, torch.device("cuda"))
    assert not on_cuda(parameter).defaults["fused"]


# ---- dropout ----

WITH_DROPOUT = """
from torch import nn


def made():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
    )
"""


def test_dropout_is_on_in_training_and_off_otherwise(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(WITH_DROPOUT)
    calls = []
    real = nn.Dropout.forward

    def forward(self, inputs):
        output = real(self, inputs)
        calls.append((torch.is_grad_enabled(), self.training, bool((output == inputs).all())))
        return output

    phases = {}
    real_end = MASMethod.end

    def end(self, index, sequence):
        before = len(calls)
        real_end(self, index, sequence)
        phases.setdefault("importance", []).extend(calls[before:])

    real_learn = training_module.learn

    def learn(*args, **kwargs):
        before = len(calls)
        real_learn(*args, **kwargs)
        phases.setdefault("training", []).extend(calls[before:])

    from retain.experiment import learner as learner_module

    monkeypatch.setattr(nn.Dropout, "forward", forward)
    monkeypatch.setattr(MASMethod, "end", end)
    monkeypatch.setattr(learner_module, "learn", learn)
    asked = tiny(methods=("mas",), model=f"{tmp_path / 'model.py'}:made", samples_per_class=8)
    assert run(asked, progress=False).runs[0].error is None
    assert {(training, same) for _, training, same in phases["training"]} == {(True, False)}
    assert {(training, same) for _, training, same in phases["importance"]} == {(False, True)}


# ---- classes for importance ----


def inputs_of_passes(**setting):
    sequence = load_tasks("digits", samples_per_class=5, classes_per_task=5)
    network = TaskNetwork(nn.Flatten(), 64)
    network.add_head(5)
    from retain.methods.finetune import FineTune, FineTuneOptions

    method = FineTune(network, FineTuneOptions(), Setting(**setting))
    return [sorted(torch.cat([b.labels for b in method.passes(task, sequence)]).tolist())
            for task in range(2)]  # fmt: skip


def test_importance_is_computed_on_the_named_classes_of_tasks_that_have_some():
    whole = sorted([0, 1, 2, 3, 4] * 5)
    assert inputs_of_passes() == [whole, whole]
    named = frozenset({"1", "3"})
    assert inputs_of_passes(importance_classes=named) == [[1] * 5 + [3] * 5, whole]
    both = inputs_of_passes(importance_classes=named, importance_on="train+test")
    assert both[0] == [1] * 10 + [3] * 10


def test_named_classes_change_what_is_held():
    asked = tiny(methods=("mas", "ewc", "si"), classes_per_task=5, epochs=3)
    whole = run(asked, progress=False)
    some = run(dataclasses.replace(asked, importance_classes=("1",)), progress=False)
    for a, b in zip(whole.runs, some.runs):
        same = a.importance_by_layer == b.importance_by_layer
        assert same == (a.method == "si")  # SI's importance comes from the path, not from data
        assert a.accuracy[0] == b.accuracy[0]
    assert accuracies(whole)[0] != accuracies(some)[0]


def test_unknown_classes_are_refused_before_training():
    with pytest.raises(ConfigError) as caught:
        run(tiny(importance_classes=("1", "12", "O"), batch_size=1000), progress=False)
    message = str(caught.value)
    assert "importance_classes has '12', which is not a class of these tasks." in message
    assert "has 'O'" in message
    assert "Their classes: 0, 1, 2" in message
    assert "Fewer training samples than a batch of 1000" in message
