"""What people do instead: each against what its formula says, on the small tasks."""

import sys

import pytest
import torch
from torch import nn

from retain.errors import ConfigError, MissingExtraError
from retain.methods import METHODS, Setting, options_of
from retain.methods.freeze import blocks_of
from retain.models import TaskNetwork

from .small import alone, backbone, learned, sequence, work


def states(one):
    return {k: t.clone() for k, t in one.network.backbone.state_dict().items()}


def loss_on_first(one):
    test = next(one.stage.sequence.tasks[0].test.batches(100))
    features = one.network.eval().features(test.inputs)
    return nn.functional.cross_entropy(one.network.heads[0](features), test.labels)


def after_first(name, form=None, **options):
    one = work(name, form=form, options=options)
    one.learn_next()
    return one, states(one)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("l2-sp", {"strength": 0.0}),
        ("low-lr", {"factor": 1.0}),
        ("freeze", {"blocks": 0}),
        ("replay", {"share": 0.0}),
        ("kl", {"strength": 0.0}),
        ("wise-ft", {"alpha": 1.0}),
    ],
)
def test_turned_off_it_is_finetune(name, options):
    ours, plain = learned(name, options=options), learned("finetune")
    assert torch.allclose(backbone(ours), backbone(plain), rtol=0, atol=1e-7)
    assert ours.run.accuracy == plain.run.accuracy


def test_l2_sp_held_hard_stays_where_it_was():
    one, before = after_first("l2-sp", "proximal", strength=1e6)
    one.learn_next()
    assert all(torch.allclose(before[k], v, atol=1e-4) for k, v in states(one).items())
    assert one.method.kept()["anchor"] is not None


def test_a_lower_learning_rate_is_a_run_with_that_rate():
    one, before = after_first("low-lr", factor=0.01)
    one.learn_next()
    other, _ = after_first("finetune")
    other.learn_next()
    near = (backbone(one) - torch.cat([t.flatten() for t in before.values()])).norm()
    far = (backbone(other) - torch.cat([t.flatten() for t in before.values()])).norm()
    assert 0 < near < 0.05 * far


def test_frozen_blocks_do_not_move_and_the_others_do():
    one, before = after_first("freeze", blocks=1)
    one.learn_next()
    after = states(one)
    first = {id(p) for p in blocks_of(one.network.backbone)[0].parameters()}
    frozen = {k for k, p in one.network.backbone.named_parameters() if id(p) in first}
    assert frozen
    assert len(frozen) < len(before)
    assert all(torch.equal(before[k], after[k]) == (k in frozen) for k in before)


def test_all_blocks_frozen_by_default():
    one, before = after_first("freeze")
    one.learn_next()
    assert all(torch.equal(before[k], v) for k, v in states(one).items())


def test_more_blocks_than_there_are_is_refused_with_their_names():
    one, _ = after_first("freeze", blocks=99)
    with pytest.raises(ConfigError, match=r"freeze\.blocks is 99, but the network has \d+ blocks"):
        one.learn_next()


def test_blocks_are_what_an_architecture_repeats():
    torchvision = pytest.importorskip("torchvision")
    count = {
        name: len(blocks_of(getattr(torchvision.models, name)()))
        for name in ("resnet18", "efficientnet_b0", "alexnet")
    }
    # ResNet: conv1, bn1, 8 residual blocks, fc; EfficientNet: a convolution at both ends, 16 blocks
    # and a classifier; AlexNet: 5 convolutions, 3 linear layers
    assert count == {"resnet18": 11, "efficientnet_b0": 19, "alexnet": 8}


def test_replay_keeps_its_share_of_every_class_and_learns_from_it():
    one, _ = after_first("replay", share=0.25)
    kept = one.method.examples[0]
    assert kept["labels"].bincount().tolist() == [8, 8]
    assert one.method.memory_bytes()["examples"] == sum(t.nbytes for t in kept.values())
    own = one.stage.sequence.tasks[0].train.inputs
    assert all((own == x).flatten(1).all(1).any() for x in kept["inputs"])
    one.learn_next()
    assert loss_on_first(one) < loss_on_first(learned("finetune"))


def test_the_loss_of_replay_is_the_mean_over_new_and_old():
    one, _ = after_first("replay", share=0.5, ratio=2.0)
    one.network.add_head(2)
    one.method.begin(1, one.stage.sequence)
    batch = next(one.stage.sequence.tasks[1].train.batches(16))
    drawn = one.method._order.get_state()
    loss = one.method.loss(batch)
    one.method._order.set_state(drawn)
    ((task, inputs, labels),) = one.method._drawn(32)
    assert task == 0
    assert len(labels) == 32
    per_sample = nn.CrossEntropyLoss(reduction="none")
    heads, features = one.network.heads, one.network.features
    everything = torch.cat(
        [
            per_sample(heads[1](features(batch.inputs)), batch.labels),
            per_sample(heads[0](features(inputs)), labels),
        ]
    )
    assert torch.allclose(loss, everything.mean())
    assert heads[0].weight.requires_grad


def test_kl_is_one_distribution_over_all_old_outputs():
    one = learned("kl", sequence(3), tasks=2)
    new = [torch.randn(5, 2), torch.randn(5, 3)]
    old = torch.randn(5, 5)
    p, q = old.softmax(1), torch.cat(new, 1).log_softmax(1)
    expected = (p * (p.log() - q)).sum(1).mean() + -(p * p.log()).sum(1).mean()
    assert torch.allclose(one.method.distilled(new, old), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_wise_ft_is_the_average_with_the_start(alpha):
    one, before = after_first("wise-ft", alpha=alpha)
    other, _ = after_first("finetune")
    one.learn_next()
    other.learn_next()
    tuned = states(other)
    for name, now in states(one).items():
        expected = (1 - alpha) * before[name] + alpha * tuned[name]
        assert torch.allclose(now, expected, atol=1e-6)
    assert sum(t.numel() for t in one.method.start.values()) == 0


def test_a_soup_is_the_mean_of_networks_that_began_at_the_first_task():
    one = learned("model-soup", sequence(3))
    models = one.method.models
    assert len(models) == 3
    for name in models[0]:
        mean = sum(m[name] for m in models) / 3
        assert torch.allclose(one.network.state_dict()[name], mean, atol=1e-6)
    second, _ = after_first("finetune")
    second.learn_next()
    for name, weight in states(second).items():
        assert torch.allclose(models[1][f"backbone.{name}"], weight, atol=1e-6)


def test_lora_changes_weights_by_low_rank_and_leaves_a_plain_network():
    pytest.importorskip("peft")
    one, before = after_first("lora", rank=2)
    names = {n for n, _ in one.network.named_modules()}
    one.learn_next()
    assert {n for n, _ in one.network.named_modules()} - {"heads.1"} == names
    moved = 0
    for name, now in states(one).items():
        change = now - before[name]
        if change.ndim == 2:
            assert torch.linalg.matrix_rank(change.double(), atol=1e-6) <= 2
            moved += bool(change.abs().max() > 1e-4)
        else:
            assert torch.equal(now, before[name])
    assert moved
    assert all(p.requires_grad for p in one.network.backbone.parameters())


class Padded(nn.Conv2d):
    """A convolution whose constructor is not that of its base."""

    def __init__(self, channels, *, around):
        super().__init__(channels, channels, 3)
        self.around = around

    def forward(self, x):
        return super().forward(nn.functional.pad(x, [self.around] * 4))


def test_lora_adapts_convolutions_in_groups_and_of_classes_of_their_own():
    pytest.importorskip("peft")
    backbone = nn.Sequential(
        nn.Linear(16, 16), nn.Unflatten(1, (4, 2, 2)), Padded(4, around=1), nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=4)), nn.Flatten(),
    )  # fmt: skip
    network = TaskNetwork(backbone, 16)
    network.add_head(2)
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    x = torch.randn(3, 16)
    plain = backbone(x)
    method = METHODS["lora"](network, options_of("lora", {"rank": 1}), Setting())
    method.begin(1, sequence())
    assert torch.equal(network.backbone(x), plain)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        network.backbone(x).square().sum().backward()
        optimizer.step()
    tuned = network.backbone(x)
    method.end(1, sequence())
    after = network.backbone.state_dict()
    assert torch.allclose(network.backbone(x), tuned, atol=1e-6)
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    for name, now in after.items():
        change = (now - before[name]).flatten(1) if now.ndim > 1 else (now - before[name])[:, None]
        rank = int(torch.linalg.matrix_rank(change.double(), atol=1e-6))
        assert rank == (1 if name.endswith("weight") else 0), name
    assert all(p.requires_grad for p in network.backbone.parameters())


def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    network = TaskNetwork(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), 4)
    with pytest.raises(MissingExtraError, match="peft"):
        alone("lora", network)


def test_lora_on_a_single_layer_says_what_to_do():
    pytest.importorskip("peft")
    network = TaskNetwork(nn.Linear(16, 4), 4)
    network.add_head(2)
    with pytest.raises(Exception, match=r"nn\.Sequential"):
        METHODS["lora"](network, options_of("lora", {}), Setting()).begin(1, sequence())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("replay", {"share": 1.01}),
        ("replay", {"share": -0.1}),
        ("wise-ft", {"alpha": 1.5}),
        ("low-lr", {"factor": 0.0}),
        ("freeze", {"blocks": -1}),
        ("lora", {"rank": 0}),
        ("l2-sp", {"strength": float("nan")}),
    ],
)
def test_out_of_range_is_refused_by_name(name, options):
    (option,) = options
    with pytest.raises(ConfigError, match=rf"{name}\.{option} is .*; expected .*[≥>]"):
        options_of(name, options)
