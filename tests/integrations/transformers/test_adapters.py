"""Trainer, a model with adapters, and what holds them."""

from __future__ import annotations

import copy

import pytest
import torch

import retain
from tests.integrations.transformers import tiny

peft = pytest.importorskip("peft")
from retain.integrations.peft import LoraPenalty  # noqa: E402
from retain.integrations.transformers import RetainCallback  # noqa: E402


def adapted(base, memory):
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["query", "dense"], modules_to_save=["classifier"])
    return LoraPenalty(memory, peft.get_peft_model(base, config))


def test_trained_saved_and_resumed(tmp_path):
    base, items = tiny.sequence_classification()
    loader = tiny.trainer(base, items, tmp_path).get_eval_dataloader()
    twin = copy.deepcopy(base)
    memory = retain.MAS(base, strength=1e4).observe(loader, progress=False).consolidate()
    penalty = adapted(base, memory)
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer = tiny.trainer(
        penalty.model, items, tmp_path, callbacks=[RetainCallback(penalty)], **saving
    )
    trainer.train()
    log = [one for one in trainer.state.log_history if "loss" in one][-1]
    assert log["penalty"] > 0
    assert log["drift"] > 0
    again = adapted(twin, retain.MAS(twin))
    resumed = tiny.trainer(
        again.model, items, tmp_path, callbacks=[RetainCallback(again)], **saving
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.memory.importance.samples == len(items)
    for (name, p), q in zip(penalty.model.named_parameters(), again.model.parameters()):
        torch.testing.assert_close(p, q, msg=name)
