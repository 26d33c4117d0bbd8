import dataclasses

import pytest
import torch
from torch import nn

from .small import learned, sequence, stage, work


def begun(**options):
    one = work("ebll", sequence(3), options={"code": 5, **options})
    one.learn_next()
    one.learn_next()
    one.network.add_head(2)
    one.method.begin(2, one.stage.sequence)
    return one


def test_keeps_one_frozen_encoder_per_task():
    one = begun()
    assert [tuple(e.weight.shape) for e in one.method.encoders] == [(5, 100), (5, 100)]
    assert not any(p.requires_grad for e in one.method.encoders for p in e.parameters())


def loss(one, alpha):
    one.method.options = dataclasses.replace(one.method.options, alpha=alpha)
    return one.method.loss(next(one.stage.sequence.tasks[2].train.batches(8)))


def test_code_loss_by_hand():
    one = begun(strength=0.0)
    batch = next(one.stage.sequence.tasks[2].train.batches(8))
    with torch.no_grad():
        before = one.network.features(batch.inputs)
        for p in one.network.backbone.parameters():
            p.add_(0.05)
        after = one.network.features(batch.inputs)
        expected = sum(
            (encoder(after).sigmoid() - encoder(before).sigmoid()).square().sum(1).mean()
            for encoder in one.method.encoders
        )
        difference = loss(one, 7.0) - loss(one, 0.0)
    assert expected > 0
    assert difference.item() == pytest.approx(7.0 * expected.item(), rel=1e-4)


def test_codes_cost_nothing_while_the_network_is_the_old_one():
    one = begun()
    assert loss(one, 7.0).item() == pytest.approx(loss(one, 0.0).item(), rel=1e-6)


def test_without_codes_it_is_lwf():
    first = learned("ebll", options={"alpha": 0.0, "code": 5})
    second = learned("lwf")
    for one, other in zip(
        first.network.backbone.parameters(), second.network.backbone.parameters()
    ):
        assert torch.allclose(one, other, atol=1e-6)


def reconstruction(epochs):
    one = work("ebll", options={"code": 20, "encoder_epochs": epochs, "encoder_lr": 1e-2})
    one.learn_next()
    torch.manual_seed(0)
    auto_encoder = one.method._trained_auto_encoder(0, one.stage.sequence)
    batch = next(one.stage.sequence.tasks[0].train.batches(64))
    with torch.no_grad():
        features = one.network.features(batch.inputs)
        kept = auto_encoder(features)
        answers = one.network.head(kept).argmax(1)
    return (kept - features).square().sum(1).mean(), (answers == batch.labels).float().mean()


def test_the_auto_encoder_keeps_what_the_task_needs():
    (error, _), (better, right) = reconstruction(1), reconstruction(60)
    assert better < error / 2
    assert right > 0.9


def test_training_the_auto_encoder_leaves_the_network_without_gradients():
    one = work("ebll")
    one.learn_next()
    for p in one.network.parameters():
        p.grad = None
    one.method._trained_auto_encoder(0, one.stage.sequence)
    assert all(p.grad is None for p in one.network.parameters())


def test_a_convolutional_network_gives_its_last_maps():
    of = sequence(2, n=32)
    enlarged = nn.Upsample(scale_factor=2)
    of = of.__class__(
        of.name,
        tuple(
            task.__class__(task.name, task.classes, *(
                split.__class__(enlarged(split.inputs), split.labels)
                for split in (task.train, task.test)
            ))
            for task in of.tasks
        ),
        (1, 8, 8),
    )  # fmt: skip
    one = work("ebll", of, model="cnn", options={"code": 5, "strength": 0.0}, epochs=1)
    one.learn_next()
    maps = one.network.conv_features(of.tasks[0].train.inputs[:2])
    assert one.method.encoders[0].in_features == maps.shape[1] > one.network.feature_size
    one.learn_next()
    assert one.run.complete
    assert stage(of).sequence is of
