"""MAS, l-MAS, EWC, online EWC and SI on a network of one weight, where everything is known."""

import pytest
import torch
from torch import nn

from retain.methods import METHODS, Setting, options_of
from retain.models import TaskNetwork
from retain.tasks import Task, TaskSequence, TensorExamples

from .small import learned, sequence, work

X = torch.tensor([[1.0], [2.0], [-3.0]])
LABELS = torch.tensor([0, 1, 0])
W, HEAD = 0.5, torch.tensor([[2.0], [-1.0]])


def one_weight(activation=None):
    """F(x) = (2wx, −wx), w = 1/2."""
    network = TaskNetwork(
        nn.Sequential(nn.Linear(1, 1, bias=False), activation or nn.Identity()), 1
    )
    network.add_head(2)
    with torch.no_grad():
        network.backbone[0].weight.fill_(W)
        network.head.weight.copy_(HEAD)
        network.head.bias.zero_()
    return network


def of(*inputs):
    """A task with those inputs, as training and as test data."""
    return TaskSequence(
        "one weight",
        tuple(Task("t", ("a", "b"), TensorExamples(x, LABELS), TensorExamples(-2 * x, LABELS))
              for x in inputs or (X,)),
        (1,),
    )  # fmt: skip


def method(name, network, *, on="train", **options):
    return METHODS[name](network, options_of(name, options), Setting(importance_on=on))


def omega(one):
    return one.importance()["backbone.0.weight"].item()


def test_mas():
    one = method("mas", one_weight())
    one.end(0, of())
    # s = ‖F‖² = 5w²x², |∂s/∂w| = 10 |w| x²; mean of x² is 14/3
    assert omega(one) == pytest.approx(10 * W * 14 / 3, rel=1e-5)


@pytest.mark.parametrize(("on", "factor"), [("train", 1), ("test", 4), ("train+test", 2.5)])
def test_mas_on_the_data_that_was_asked_for(on, factor):
    one = method("mas", one_weight(), on=on)
    one.end(0, of())  # test inputs are twice as large
    assert omega(one) == pytest.approx(factor * 10 * W * 14 / 3, rel=1e-5)


@pytest.mark.parametrize("name", ["mas", "local-mas"])
def test_labels_are_never_used(name):
    first, second = (method(name, one_weight(nn.ReLU()), on="train+test") for _ in range(2))
    first.end(0, of())
    other = of()
    for split in (other.tasks[0].train, other.tasks[0].test):
        split.labels[:] = 1 - split.labels
    second.end(0, other)
    assert omega(first) == omega(second) > 0


def test_mas_sums_over_tasks_and_holds_at_the_latest_weights():
    network = one_weight()
    one = method("mas", network, strength=3.0)
    one.end(0, of())
    with torch.no_grad():
        network.backbone[0].weight.fill_(1.0)
    one.end(1, of(X, X))
    total = 10 * W * 14 / 3 + 10 * 1.0 * 14 / 3
    assert omega(one) == pytest.approx(total, rel=1e-5)
    with torch.no_grad():
        network.backbone[0].weight.fill_(1.2)
    # λ Ω (θ − θ*)², without ½
    assert one.memory.penalty().item() == pytest.approx(3.0 * total * 0.2**2, rel=1e-4)


def test_local_mas():
    one = method("local-mas", one_weight(nn.ReLU()))
    one.end(0, of())
    # y = relu(wx): 2·y·x where x > 0, that is 2w(1 + 4)/3
    assert omega(one) == pytest.approx(2 * W * 5 / 3, rel=1e-5)
    assert list(one.importance()) == ["backbone.0.weight"]


def fisher(w, labels=None):
    """1/N Σ over samples of Σ_y p(y) (∂ log p(y)/∂w)², or with the given labels."""
    total = 0.0
    for k, x in enumerate(X.flatten().tolist()):
        p = torch.softmax(HEAD.flatten() * w * x, 0)
        # ∂ log p(y)/∂w = (h_y − Σ p h) x
        slopes = (HEAD.flatten() - (p * HEAD.flatten()).sum()) * x
        total += ((p * slopes**2).sum() if labels is None else slopes[labels[k]] ** 2).item()
    return total / len(X)


@pytest.mark.parametrize(("kind", "labels"), [("exact", None), ("empirical", LABELS)])
def test_ewc(kind, labels):
    network = one_weight()
    one = method("ewc", network, fisher=kind, strength=4.0)
    one.end(0, of())
    assert omega(one) == pytest.approx(fisher(W, labels), rel=1e-4)
    with torch.no_grad():
        network.backbone[0].weight.fill_(W + 0.1)
    # λ/2 F (θ − θ*)²
    assert one.memory.penalty().item() == pytest.approx(2 * fisher(W, labels) * 0.01, rel=1e-3)


def test_ewc_keeps_a_term_per_task():
    network = one_weight()
    one = method("ewc", network, fisher="exact", strength=2.0)
    one.end(0, of())
    with torch.no_grad():
        network.backbone[0].weight.fill_(1.0)
    one.end(1, of(X, X))
    with torch.no_grad():
        network.backbone[0].weight.fill_(0.7)
    expected = fisher(W) * (0.7 - W) ** 2 + fisher(1.0) * (0.7 - 1.0) ** 2
    assert one.memory.penalty().item() == pytest.approx(expected, rel=1e-4)


def test_online_ewc_fades_and_holds_at_the_latest_weights():
    network = one_weight()
    one = method("online-ewc", network, fisher="exact", strength=2.0, decay=0.6)
    one.end(0, of())
    with torch.no_grad():
        network.backbone[0].weight.fill_(1.0)
    one.end(1, of(X, X))
    # F ← γF + F_new
    faded = 0.6 * fisher(W) + fisher(1.0)
    assert omega(one) == pytest.approx(faded, rel=1e-4)
    with torch.no_grad():
        network.backbone[0].weight.fill_(0.7)
    assert one.memory.penalty().item() == pytest.approx(faded * 0.3**2, rel=1e-4)


def test_si_follows_the_first_task_too():
    network = one_weight()
    one = method("si", network, damping=0.1, strength=1.0)
    optimizer = torch.optim.SGD([network.backbone[0].weight], lr=0.5)
    with one.protecting(0, optimizer):
        for gradient in (1.0, 0.4):
            network.backbone[0].weight.grad = torch.full((1, 1), gradient)
            optimizer.step()
    one.end(0, of())
    # ω = −Σ g Δθ = 0.5 (1 + 0.16); Δ = −0.7; Ω = ω / (Δ² + ξ)
    assert omega(one) == pytest.approx(0.58 / (0.49 + 0.1), rel=1e-5)
    with torch.no_grad():
        network.backbone[0].weight.add_(0.2)
    assert one.memory.penalty().item() == pytest.approx(0.04 * 0.58 / 0.59, rel=1e-4)


@pytest.mark.parametrize("name", ["mas", "local-mas", "ewc", "online-ewc", "si"])
def test_heads_are_free_unless_tasks_share_one(name):
    gently = {"strength": 1.0}
    shared = learned(name, sequence(2, scenario="domain-incremental"), options=gently)
    apart = learned(name, options=gently)
    assert not [n for n in apart.method.importance() if n.startswith("heads")]
    if name != "local-mas":  # the local rule leaves the layer that makes the output out
        assert [n for n in shared.method.importance() if n.startswith("heads.0")]


@pytest.mark.parametrize("name", ["mas", "local-mas", "ewc", "online-ewc", "si"])
def test_the_penalty_is_not_zero_after_the_first_task(name):
    one = learned(name, tasks=1)
    with torch.no_grad():
        for p in one.network.backbone.parameters():
            p.add_(0.1)
    assert one.method.memory.penalty() > 0


def test_fisher_draws_depend_on_the_seed():
    values = []
    for seed in (0, 0, 1):
        one = work("ewc", seed=0)
        one.method = METHODS["ewc"](one.network, options_of("ewc", {}), Setting(seed=seed))
        one.method.end(0, one.stage.sequence)
        values.append(sum(f.sum() for f in one.method.importance().values()).item())
    assert values[0] == values[1] != values[2]


def test_importance_is_computed_on_batches_of_its_own_size():
    setting = Setting(importance_size=2)
    one = METHODS["mas"](one_weight(), options_of("mas", {}), setting)
    assert [len(batch.labels) for batch in one.passes(0, of())] == [2, 1]
    one.end(0, of())
    assert omega(one) == pytest.approx(10 * W * 14 / 3, rel=1e-5)
