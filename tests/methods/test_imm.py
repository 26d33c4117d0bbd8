import pytest
import torch
from torch import nn

from retain.errors import ConfigError
from retain.methods.imm import merged_mean, merged_mode
from retain.methods.start import shared_weights

from .small import backbone, learned, sequence, work

ONE = {"w": torch.tensor([1.0, 10.0])}
TWO = {"w": torch.tensor([3.0, 20.0])}


def test_mean_by_hand():
    assert merged_mean([ONE, TWO], [1, 1])["w"].tolist() == [2.0, 15.0]
    # shares 3/4 and 1/4
    assert merged_mean([ONE, TWO], [3, 1])["w"].tolist() == [1.5, 12.5]


def test_mode_by_hand():
    fishers = [{"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([1.0, 2.0])}]
    merged = merged_mode([ONE, TWO], fishers, [1, 1])["w"]
    # (3·1 + 1·3) / 4 and (0·10 + 2·20) / 2
    assert torch.allclose(merged, torch.tensor([1.5, 20.0]))
    # α = (1, 3): (3·1 + 3·3) / 6
    assert merged_mode([ONE, TWO], fishers, [1, 3])["w"][0].item() == pytest.approx(2.0)


def test_mode_is_the_mean_where_no_fisher_says_anything():
    nothing = {"w": torch.zeros(2)}
    assert torch.allclose(
        merged_mode([ONE, TWO], [nothing, nothing], [1, 3])["w"], torch.tensor([2.5, 17.5])
    )


def test_mode_does_not_merge_by_fisher_what_has_none():
    running = {"w": torch.tensor([1.0]), "running_mean": torch.tensor([4.0])}
    other = {"w": torch.tensor([2.0]), "running_mean": torch.tensor([8.0])}
    fishers = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}]
    merged = merged_mode([running, other], fishers, [1, 1])
    assert merged["w"].item() == pytest.approx(1.75)
    assert merged["running_mean"].item() == 6.0


def test_mode_is_the_minimiser_of_the_tasks_quadratics():
    θ1, θ2, F1, F2 = torch.randn(4, 5, dtype=torch.float64).unbind()  # noqa: PLC2401
    F1, F2 = F1.abs(), F2.abs()
    merged = merged_mode([{"w": θ1}, {"w": θ2}], [{"w": F1}, {"w": F2}], [1, 1])["w"]
    merged.requires_grad_(True)
    (F1 * (merged - θ1) ** 2 + F2 * (merged - θ2) ** 2).sum().backward()
    assert merged.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", ["imm-mean", "imm-mode"])
def test_what_is_measured_is_the_merge_and_training_goes_on_unmerged(name):
    one = learned(name, sequence(3), tasks=2)
    last = one.method.models[-1]
    measured = {n: t.clone() for n, t in one.network.state_dict().items()}
    assert any(not torch.equal(measured[n], w) for n, w in last.items())
    one.network.add_head(2)
    one.method.begin(2, one.stage.sequence)
    for name_, weights in last.items():
        assert torch.equal(one.network.state_dict()[name_], weights)


def test_heads_are_not_merged():
    one = learned("imm-mean", sequence(2))
    assert all(name.startswith("backbone.") for name in one.method.models[0])


def test_a_shared_head_is():
    one = learned("imm-mode", sequence(2, scenario="domain-incremental"))
    assert "heads.0.weight" in one.method.models[0]
    assert "heads.0.weight" in one.method.fishers[0]


def test_ratios_put_all_weight_on_one_task():
    one = learned("imm-mean", options={"alpha": (1.0, 0.0)})
    merged = {n: t for n, t in one.network.state_dict().items() if n in one.method.models[0]}
    assert all(torch.equal(merged[n], w) for n, w in one.method.models[0].items())


def test_ratios_must_be_one_per_task():
    with pytest.raises(ConfigError, match="3 ratios for 2 tasks"):
        learned("imm-mean", options={"alpha": (1.0, 1.0, 1.0)})


def test_without_weight_transfer_each_task_starts_from_the_first_weights():
    one = work("imm-mean", options={"weight_transfer": False})
    first = backbone(one)
    one.learn_next()
    assert not torch.equal(backbone(one), first)
    one.network.add_head(2)
    one.method.begin(1, one.stage.sequence)
    assert torch.equal(backbone(one), first)


def test_l2_transfer_by_hand():
    one = learned("imm-mean", tasks=1, options={"strength": 0.3})
    one.network.add_head(2)
    one.method.begin(1, one.stage.sequence)
    p = one.network.backbone.layers[0].weight
    with torch.no_grad():
        p.add_(1.0)
    before = p.detach().clone()
    optimizer = torch.optim.SGD([p], lr=0.1)
    p.grad = torch.full_like(p, 2.0)
    with one.method.protecting(1, optimizer):
        optimizer.step()
    # θ − η (g + 2λ (θ − θ*)) = θ − 0.1 (2 + 2·0.3·1)
    assert torch.allclose(p, before - 0.26, atol=1e-6)


def dropped(p):
    one = learned("imm-mean", tasks=1, options={"drop_transfer": p})
    one.method.begin(1, one.stage.sequence)
    layer = one.network.backbone.layers[0]
    with torch.no_grad():
        layer.weight.add_(1.0)
        layer.bias.add_(1.0)
    return one


def test_drop_transfer_sets_nodes_back_to_the_old_weights():
    one = dropped(0.25)
    torch.manual_seed(0)
    changed = one.method._with_drop_transfer()
    weight, bias = changed["backbone.layers.0.weight"], changed["backbone.layers.0.bias"]
    old = one.method.models[-1]["backbone.layers.0.weight"]
    moved = weight - old
    # a node is at θ*, or at θ* + (θ − θ*) / (1 − p) = θ* + 4/3; its bias with it
    gone = moved.abs().max(1).values < 1e-6
    assert 0 < gone.sum() < len(gone)
    assert torch.allclose(moved[~gone], torch.full_like(moved[~gone], 4 / 3), atol=1e-5)
    assert torch.equal(gone, (bias - one.method.models[-1]["backbone.layers.0.bias"]).abs() < 1e-6)


def test_drop_transfer_is_the_weights_in_the_mean():
    one = dropped(0.5)
    torch.manual_seed(0)
    name = "backbone.layers.0.weight"
    mean = sum(one.method._with_drop_transfer()[name] for _ in range(2000)) / 2000
    assert (mean - one.network.state_dict()[name]).abs().max() < 0.15


def test_drop_transfer_trains():
    one = learned("imm-mean", options={"drop_transfer": 0.3})
    assert one.run.complete
    assert not torch.equal(backbone(one), backbone(learned("imm-mean")))


def test_running_statistics_are_merged_and_counters_are_not():
    backbone_ = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))
    from retain.models import TaskNetwork

    from .small import alone

    network = TaskNetwork(backbone_, 4)
    network.add_head(2)
    kept = shared_weights(network, alone("imm-mean", network).setting)
    assert "backbone.2.running_mean" in kept
    assert "backbone.2.num_batches_tracked" not in kept
