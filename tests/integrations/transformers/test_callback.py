"""RetainCallback with the real Trainer."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError, StateError
from tests.integrations.transformers import tiny

transformers = pytest.importorskip("transformers")
from retain.integrations.transformers import RetainCallback  # noqa: E402


def remembered(make=tiny.sequence_classification, strength=100.0):
    """(a model, its data, a memory that holds it away from where it is)."""
    model, items = make()
    model.eval()
    memory = retain.MAS(model, strength=strength)
    batch = {k: torch.stack([item[k] for item in items]) for k in items[0] if k != "labels"}
    memory.observe([batch], progress=False).consolidate()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model, items, memory


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def no_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


class WithPenalty(transformers.Trainer):
    memory = None

    def compute_loss(self, model, inputs, return_outputs=False, **more):
        loss = super().compute_loss(model, inputs, **more)
        # Its own losses come divided by the steps that are accumulated.
        return loss + self.memory.penalty() / self.current_gradient_accumulation_steps


@pytest.mark.parametrize("make", tiny.KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_model(make, tmp_path):
    model, items = make()
    trainer = tiny.trainer(model, items, tmp_path, max_steps=2)
    output = (lambda returned: returned.pooled) if make is tiny.sentence_encoder else None
    memory = retain.MAS(model, strength=10.0, output=output)
    memory.observe(trainer.get_eval_dataloader(), progress=False).consolidate()
    assert memory.importance.samples == len(items)
    trainer.add_callback(RetainCallback(memory))
    trainer.train()
    said = [log for log in trainer.state.log_history if "loss" in log]
    assert len(said) == 2
    assert all(log["penalty"] > 0 and log["drift"] > 0 for log in said)


def test_no_label_is_looked_at(tmp_path):
    model, items = tiny.sequence_classification()
    observed = []
    for labels in (0, 2):
        same = [{**item, "labels": torch.tensor(labels)} for item in items]
        loader = tiny.trainer(model, same, tmp_path).get_eval_dataloader()
        observed.append(retain.MAS(model).observe(loader, progress=False).observed)
    assert all(torch.equal(observed[0][name], observed[1][name]) for name in observed[0])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_is_that_of_the_penalty_in_the_loss(accumulation, tmp_path):
    model, items, memory = remembered()
    no_dropout(model)
    twin = copy.deepcopy(model)
    settings = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 0.0, "max_steps": 3}
    callback = RetainCallback(memory, form="gradient")
    tiny.trainer(
        model, items, tmp_path, callbacks=[callback], optimizers=tiny.sgd(model), **settings
    ).train()
    WithPenalty.memory = copy.deepcopy(memory)
    WithPenalty.memory.model = twin
    tiny.trainer(
        twin, items, tmp_path, kind=WithPenalty, optimizers=tiny.sgd(twin), **settings
    ).train()
    for name, p in weights(model).items():
        torch.testing.assert_close(p, weights(twin)[name], rtol=1e-4, atol=1e-6, msg=name)


def test_only_the_gradient_of_the_task_is_clipped(tmp_path):
    model, items, memory = remembered()
    before = weights(model)
    expected = torch.autograd.grad(memory.penalty(), list(model.parameters()), allow_unused=True)
    tiny.trainer(
        model,
        items,
        tmp_path,
        callbacks=[RetainCallback(memory, form="gradient")],
        optimizers=tiny.sgd(model, rate=0.1),
        max_steps=1,
        max_grad_norm=1e-9,
    ).train()
    for (name, p), g in zip(model.named_parameters(), expected):
        if g is not None:
            torch.testing.assert_close(p.detach(), before[name] - 0.1 * g, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"bf16": True},
        {"eval_strategy": "steps", "eval_steps": 1},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*checkpointing.*")
def test_settings_of_trainer(settings, tmp_path):
    model, items, memory = remembered(strength=1e4)
    free, distance = copy.deepcopy(model), float(memory.penalty().detach())
    tiny.trainer(free, items, tmp_path, **settings).train()
    trainer = tiny.trainer(model, items, tmp_path, callbacks=[RetainCallback(memory)], **settings)
    trainer.train()
    assert float(memory.penalty().detach()) < 0.5 * distance
    assert not hooks_of(trainer)


def hooks_of(trainer):
    optimizer = trainer.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    return [*inner._optimizer_step_pre_hooks, *inner._optimizer_step_post_hooks]


class Fails(transformers.Trainer):
    """Fails in its second step, once."""

    with_ = RuntimeError("no luck")
    calls = 0

    def compute_loss(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 2:
            raise self.with_
        return super().compute_loss(*args, **kwargs)


def test_training_that_fails_leaves_nothing_attached(tmp_path):
    model, items, memory = remembered()
    trainer = tiny.trainer(model, items, tmp_path, callbacks=[RetainCallback(memory)], kind=Fails)
    with pytest.raises(RuntimeError, match="no luck"):
        trainer.train()
    assert not hooks_of(trainer)
    memory.attach(trainer.optimizer).remove()
    trainer.train()
    assert not hooks_of(trainer)


def test_a_batch_size_that_is_found(tmp_path):
    model, items, memory = remembered(strength=1e4)
    distance = float(memory.penalty().detach())
    trainer = tiny.trainer(
        model,
        items,
        tmp_path,
        callbacks=[RetainCallback(memory)],
        kind=Fails,
        auto_find_batch_size=True,
    )
    trainer.with_ = RuntimeError("CUDA out of memory. Tried to allocate everything")
    trainer.train()
    assert trainer._train_batch_size < 4
    assert float(memory.penalty().detach()) < 0.5 * distance
    assert not hooks_of(trainer)


def test_several_callbacks(tmp_path):
    model, items, memory = remembered()
    other = retain.EWC(model, strength=7.0, fisher="exact")
    batch = {k: torch.stack([item[k] for item in items]) for k in items[0] if k != "labels"}
    other.observe([batch], progress=False).consolidate()
    callbacks = [RetainCallback(memory), RetainCallback(other, file="ewc.safetensors")]
    trainer = tiny.trainer(
        model, items, tmp_path, callbacks=callbacks, save_strategy="steps", save_steps=2
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert {"penalty", "drift", "penalty_ewc", "drift_ewc"} <= set(log)
    folder = tmp_path / "checkpoint-2"
    assert type(retain.load(folder / "retain.safetensors", model)) is retain.MAS
    assert type(retain.load(folder / "ewc.safetensors", model)) is retain.EWC


def test_training_ends_when_the_drift_is_beyond_a_limit(tmp_path):
    model, items, memory = remembered()
    limit = RetainCallback(memory, stop_when_drift_exceeds=1e-6)
    trainer = tiny.trainer(model, items, tmp_path, callbacks=[limit], max_steps=5)
    with pytest.warns(UserWarning, match="Training ends here: the drift is .* beyond the limit"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert limit.state()["args"]["stop_when_drift_exceeds"] == 1e-6
    far = RetainCallback(memory, stop_when_drift_exceeds=1e6)
    trainer = tiny.trainer(model, items, tmp_path, callbacks=[far], max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    with pytest.raises(InputError, match="stop_when_drift_exceeds"):
        RetainCallback(memory, stop_when_drift_exceeds=-1)


class Reports(transformers.TrainerCallback):
    """Keeps what it is told, as those that write to TensorBoard and its like do."""

    def __init__(self):
        self.told = []

    def on_log(self, args, state, control, logs=None, **more):
        self.told.append(dict(logs))


@pytest.mark.parametrize("added", [False, True], ids=["given", "added later"])
def test_the_logs_that_are_printed_and_reported_have_it_too(added, tmp_path, capsys):
    model, items, memory = remembered()
    reports = Reports()
    ours = [RetainCallback(memory), RetainCallback(memory, file="again.safetensors")]
    trainer = tiny.trainer(
        model, items, tmp_path, callbacks=[reports] if added else [reports, *ours], max_steps=1
    )
    for one in ours if added else []:
        trainer.add_callback(one)
    known = [one for one in trainer.callback_handler.callbacks if one not in ours]
    trainer.train()
    assert {"penalty", "penalty_again", "drift"} <= reports.told[0].keys()
    assert "'penalty'" in capsys.readouterr().out
    assert trainer.callback_handler.callbacks == [*ours, *known]


@pytest.mark.parametrize("restored", [False, True])
def test_resuming_ends_where_it_would_have(restored, tmp_path):
    model, items, memory = remembered()
    start = copy.deepcopy(model)
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    tiny.trainer(model, items, tmp_path, callbacks=[RetainCallback(memory)], **saving).train()
    twin = copy.deepcopy(start)  # a new process: another model, and a memory of nothing yet
    empty = retain.MAS(twin, strength=100.0)
    trainer = tiny.trainer(
        twin,
        items,
        tmp_path,
        callbacks=[RetainCallback(empty)],
        restore_callback_states_from_checkpoint=restored,
        **saving,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train(resume_from_checkpoint=True)
    for name, p in weights(model).items():
        torch.testing.assert_close(p, weights(twin)[name], msg=name)
    assert empty.importance.samples == memory.importance.samples
    kept = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert kept["stateful_callbacks"]["RetainCallback"] == {
        "args": {
            "form": "adaptive",
            "file": "retain.safetensors",
            "stop_when_drift_exceeds": None,
        },
        "attributes": {},
    }


def test_resuming_from_a_checkpoint_without_a_memory(tmp_path):
    model, items, memory = remembered()
    saving = {"save_strategy": "steps", "save_steps": 2}
    tiny.trainer(model, items, tmp_path, **saving).train()
    trainer = tiny.trainer(model, items, tmp_path, callbacks=[RetainCallback(memory)], **saving)
    with pytest.warns(UserWarning, match=r"without a memory: there is no .*retain\.safetensors"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_folder_of_another_run_is_not_taken_for_the_checkpoint(tmp_path):
    model, items, memory = remembered()
    saving = {"save_strategy": "steps", "save_steps": 2}
    for run in ("one", "two"):
        tiny.trainer(
            model, items, tmp_path / run, callbacks=[RetainCallback(memory)], **saving
        ).train()
    trainer = tiny.trainer(
        model, items, tmp_path / "two", callbacks=[RetainCallback(memory)], **saving
    )
    with pytest.warns(UserWarning, match="it was not found"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))


def test_an_optimizer_of_other_parameters(tmp_path):
    model, items, _ = remembered()
    other = retain.MAS(copy.deepcopy(model))
    trainer = tiny.trainer(model, items, tmp_path, callbacks=[RetainCallback(other)])
    with pytest.raises(InputError, match="none of the protected parameters"):
        trainer.train()


def test_an_optimizer_that_steps_elsewhere(tmp_path):
    model, _, memory = remembered()
    wrapped = type("Wrapper", (), {"step": lambda _: None, "param_groups": []})()
    wrapped.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = RetainCallback(memory)
    callback.on_pre_optimizer_step(optimizer=wrapped)
    with pytest.raises(StateError, match=r"Wrapper took no step.*memory\.attach\(optimizer\)"):
        callback.on_optimizer_step(optimizer=wrapped)
    wrapped.step_was_skipped = True
    callback.on_pre_optimizer_step(optimizer=wrapped)
    callback.on_optimizer_step(optimizer=wrapped)


def test_a_rank_that_does_not_see_the_folder(tmp_path, monkeypatch):
    """Of a sharded memory it gives its part, and another one writes."""
    from retain.integrations.transformers import callback as module

    model, _, memory = remembered()
    monkeypatch.setattr(module, "any_sharded", lambda _: True)
    asked = []
    monkeypatch.setattr(memory, "save", asked.append)
    state = type("State", (), {"global_step": 2, "is_world_process_zero": False})()
    RetainCallback(memory).on_save(tiny.arguments(tmp_path), state, None, model=model)
    assert [path.name for path in asked] == ["retain.safetensors"]


def test_observed_but_not_consolidated(tmp_path):
    model, items, memory = remembered()
    memory.observe([{"input_ids": items[0]["input_ids"][None]}], progress=False)
    trainer = tiny.trainer(model, items, tmp_path, callbacks=[RetainCallback(memory)])
    with pytest.raises(StateError, match="never consolidated"):
        trainer.train()


def test_counting_twice_is_said(tmp_path):
    model, items, memory = remembered()
    WithPenalty.memory = memory
    trainer = tiny.trainer(
        model, items, tmp_path, callbacks=[RetainCallback(memory)], kind=WithPenalty
    )
    with pytest.warns(UserWarning, match="counts twice"):
        trainer.train()


def test_no_memory_at_all(tmp_path):
    model, items, _ = remembered()
    trainer = tiny.trainer(
        model, items, tmp_path, callbacks=[RetainCallback(file="elsewhere.safetensors")]
    )
    with pytest.raises(StateError, match="has no memory"):
        trainer.train()
