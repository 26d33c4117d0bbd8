import math

import pytest
import torch
from torch import nn

from retain.methods.lwf import distillation

from .small import Jittered, backbone, learned, sequence, work


def test_distillation_by_hand():
    # T = 2: softmax((ln 9, 0)/2) = (3/4, 1/4) and softmax((0, 0)/2) = (1/2, 1/2)
    old = torch.tensor([[math.log(9.0), 0.0]])
    new = torch.zeros(1, 2)
    assert distillation(new, old, 2.0).item() == pytest.approx(math.log(2))
    # against itself it is the entropy of (3/4, 1/4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert distillation(old, old, 2.0).item() == pytest.approx(entropy)


def test_no_factor_of_temperature_squared():
    old = torch.tensor([[math.log(9.0), 0.0]])
    new = torch.zeros(1, 2, requires_grad=True)
    distillation(new, old, 2.0).backward()
    # ∂/∂new = (softmax(new/T) − softmax(old/T)) / T
    assert torch.allclose(new.grad, torch.tensor([[-0.125, 0.125]]))


def begun(kind=None, **options):
    one = work("lwf", sequence(3, **({"kind": kind} if kind else {})), options=options)
    one.learn_next()
    one.learn_next()
    one.network.add_head(2)
    one.method.begin(2, one.stage.sequence)
    return one


def test_loss_by_hand_on_two_old_heads():
    one = begun(strength=3.0)
    old_network = {name: p.clone() for name, p in one.network.state_dict().items()}
    batch = next(one.stage.sequence.tasks[2].train.batches(8))
    with torch.no_grad():
        for p in one.network.backbone.parameters():
            p.add_(0.1)
        new = [head(one.network.features(batch.inputs)) for head in one.network.heads]
        loss = one.method.loss(batch)
        one.network.load_state_dict(old_network)
        old = [head(one.network.features(batch.inputs)) for head in one.network.heads]
    expected = nn.functional.cross_entropy(new[2], batch.labels)
    for task in (0, 1):
        targets = (old[task] / 2).softmax(1)
        expected += 3.0 * -(targets * (new[task] / 2).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_records_where_inputs_repeat_and_asks_a_teacher_where_they_do_not():
    recorded, taught = begun().method.old, begun(Jittered).method.old
    assert recorded.teacher is None
    assert recorded.recorded.shape == (64, 4)
    assert taught.recorded is None
    assert not any(p.requires_grad for p in taught.teacher.parameters())


def test_the_record_is_what_a_teacher_would_say_whatever_the_order():
    one = begun()
    examples = one.stage.sequence.tasks[2].train
    shuffled = next(examples.batches(20, shuffle=torch.Generator().manual_seed(3)))
    with torch.no_grad():
        asked = one.method.answers(one.network, shuffled.inputs)
    assert torch.allclose(one.method.old(shuffled), asked, atol=1e-6)


def test_the_teacher_stays_as_it_was():
    one = begun(Jittered)
    examples = one.stage.sequence.tasks[2].train
    batch = next(examples.batches(8))
    before = one.method.old(batch)
    with torch.no_grad():
        for p in one.network.backbone.parameters():
            p.mul_(2)
    assert torch.equal(one.method.old(batch), before)


def test_warming_up_moves_the_new_head_alone():
    plain, warm = begun(), begun(warmup_epochs=3)
    for one in (plain, warm):
        assert torch.equal(one.network.heads[0].weight, learned_head())
    assert not torch.equal(plain.network.heads[2].weight, warm.network.heads[2].weight)


def learned_head():
    return learned("lwf", sequence(3), tasks=1).network.heads[0].weight


def test_warming_up_leaves_the_backbone():
    one = work("lwf", options={"warmup_epochs": 2})
    one.learn_next()
    before = backbone(one)
    one.network.add_head(2)
    one.method.begin(1, one.stage.sequence)
    assert torch.equal(backbone(one), before)


def test_one_shared_head_is_distilled_too():
    of = sequence(2, scenario="domain-incremental")
    one = learned("lwf", of, tasks=1, options={"strength": 5.0})
    one.network.add_head(2)
    one.method.begin(1, of)
    assert one.method.old_heads == [0]
    assert one.method.old.recorded.shape == (64, 2)
