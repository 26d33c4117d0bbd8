"""One formula, three forms: value, gradient, proximal step."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retain.errors import StateError
from retain.penalty import (
    Hold,
    Metric,
    Penalty,
    PenaltyChunks,
    add_gradient,
    add_gradients,
    hold,
    many,
    parts,
    proximal_,
    proximals_,
    value,
    values,
)

SHAPES = [(), (7,), (5, 3), (2, 3, 4, 5), (300, 700), (70_001,), (1, 70_000), (3, 0)]


def make(shape, holds=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw(), [Hold(draw().abs(), draw()) for _ in range(holds)]


def plainly(theta, holds):
    """Σ Ω (θ − θ*)², as it is written."""
    return sum((omega * (theta - star) ** 2).sum() for omega, star, _unit in holds)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("holds", [1, 3])
def test_the_value_is_the_sum_as_it_is_written(shape, holds):
    theta, held = make(shape, holds)
    torch.testing.assert_close(value(theta, held), plainly(theta, held))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("holds", [1, 3])
def test_the_gradient_is_that_of_the_value(shape, holds):
    theta, held = make(shape, holds)
    given = torch.randn(shape, dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(plainly(leaf, held), leaf)
    before = given.clone()
    torch.testing.assert_close(add_gradient(given, theta, held, 0.3), given + 0.3 * expected)
    torch.testing.assert_close(add_gradient(None, theta, held, 0.3), 0.3 * expected)
    assert torch.equal(given, before), "the given gradient was written to"
    out = torch.empty_like(given)
    assert add_gradient(given, theta, held, 0.3, out=out) is out
    torch.testing.assert_close(out, given + 0.3 * expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("holds", [1, 3])
def test_autograd_of_the_function_is_the_gradient(shape, holds):
    theta, held = make(shape, holds)
    leaf = theta.clone().requires_grad_()
    total = Penalty.apply([held], 0.7, lambda _weight: None, PenaltyChunks(), leaf)
    torch.testing.assert_close(total, 0.7 * plainly(theta, held))
    (5 * total).backward()
    torch.testing.assert_close(leaf.grad, add_gradient(None, theta, held, 3.5))


def test_gradcheck():
    theta, held = make((4, 3), holds=2)
    leaf = theta.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: Penalty.apply([held], 0.7, lambda _weight: None, PenaltyChunks(), t), (leaf,)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_proximal_step_is_the_closed_form(shape):
    theta, held = make(shape)
    (omega, star, _unit), scale = held[0], 0.3
    expected = (theta + 2 * scale * omega * star) / (1 + 2 * scale * omega)
    proximal_(theta, held, scale)
    torch.testing.assert_close(theta, expected)


@pytest.mark.parametrize("holds", [1, 3])
def test_the_proximal_step_ends_where_the_sub_problem_has_no_slope(holds):
    theta, held = make((50, 20), holds)
    x, scale = theta.clone(), 2.5
    proximal_(x, held, scale)
    # ½‖x − θ‖² + scale · Σ Ω (x − θ*)² is least where x − θ + scale · Σ 2Ω (x − θ*) = 0
    slope = x - theta + add_gradient(None, x, held, scale)
    assert slope.abs().max() < 1e-12


def test_a_small_proximal_step_is_a_gradient_step():
    theta, held = make((50, 20))
    for scale in (1e-3, 1e-4):
        x = theta.clone()
        proximal_(x, held, scale)
        step = add_gradient(None, theta, held, scale)
        assert ((theta - x) - step).norm() < 10 * scale * step.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_stay_to_the_bit_where_nothing_pulls(dtype):
    theta, held = make((50, 20), dtype=dtype)
    before = theta.clone()
    proximal_(theta, held, 0.0)
    assert torch.equal(theta, before)
    proximal_(theta, [Hold(torch.zeros_like(theta), held[0].anchor)], 1e30)
    assert torch.equal(theta, before)


def test_an_endless_pull_ends_at_the_anchor():
    theta, held = make((50, 20), dtype=torch.float32)
    proximal_(theta, held, 1e38)
    torch.testing.assert_close(theta, held[0].anchor, atol=1e-6, rtol=1e-6)
    theta, held = make((50, 20), dtype=torch.float32)
    nothing = Hold(torch.zeros_like(theta), held[0].anchor)
    before = theta.clone()
    proximal_(theta, [nothing], 1e300)
    assert torch.equal(theta, before)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
def test_types_may_differ(stored, weights):
    theta, held = make((30, 20), dtype=torch.float32)
    theta = theta.to(weights)
    held = [Hold(*(t.to(stored) for t in held[0][:2]))]
    exact = [Hold(*(t.double() for t in held[0][:2]))]
    torch.testing.assert_close(value(theta, held).double(), plainly(theta.double(), exact))
    given = torch.randn(30, 20).to(weights)
    expected = add_gradient(given.double(), theta.double(), exact, 0.5).to(weights)
    torch.testing.assert_close(add_gradient(given, theta, held, 0.5), expected)
    moved, right = theta.clone(), theta.double()
    proximal_(moved, held, 0.5)
    proximal_(right, exact, 0.5)
    torch.testing.assert_close(moved, right.to(weights))


def test_any_memory_layout():
    theta, held = make((40, 30, 5, 7))
    wanted = add_gradient(None, theta, held, 1.0)
    moved = theta.clone()
    proximal_(moved, held, 1.0)
    last = theta.to(memory_format=torch.channels_last)
    torch.testing.assert_close(value(last, held), value(theta, held))
    torch.testing.assert_close(add_gradient(None, last, held, 1.0), wanted)
    proximal_(last, held, 1.0)
    torch.testing.assert_close(last, moved)


# ---- many at once ----

KINDS = {
    "all alike": [(torch.float32, torch.float32, torch.float32, 1)],
    "double": [(torch.float64, torch.float64, torch.float64, 2)],
    "half": [(torch.float16, torch.float32, torch.float16, 1)],
    "Ω in bfloat16": [(torch.float32, torch.bfloat16, torch.float32, 2)],
    "all in bfloat16": [(torch.bfloat16, torch.bfloat16, torch.bfloat16, 1)],
    "mixed": [
        (torch.float32, torch.float32, torch.float32, 1),
        (torch.float32, torch.bfloat16, torch.bfloat16, 1),
        (torch.float64, torch.float32, torch.float64, 3),
        (torch.bfloat16, torch.float32, torch.bfloat16, 1),
        (torch.float16, torch.float16, torch.float32, 2),
        (torch.float32, torch.float32, torch.float32, 2),
    ],
}


def several(kinds, seed=0):
    """Parameters of all shapes, of these kinds in turn: of θ, Ω and θ*, and how many holds."""
    thetas, holds = [], []
    for i, shape in enumerate(SHAPES * 2):
        weights, omegas, stars, count = kinds[i % len(kinds)]
        theta, held = make(shape, count, seed=seed + i)
        thetas.append(theta.to(weights))
        holds.append([Hold(h.importance.to(omegas), h.anchor.to(stars)) for h in held])
    return thetas, holds


@pytest.fixture(params=["small ones", "all", "by the piece"])
def sizes(request, monkeypatch):
    """What goes at once: as it is, everything, or as little as possible."""
    if request.param != "small ones":
        monkeypatch.setattr(many, "SMALL", 1 << 20)
    if request.param == "by the piece":
        monkeypatch.setattr(parts, "PART", 500)
        monkeypatch.setattr(many, "SMALL", 200)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_many_values_are_those_of_each(kinds, sizes):
    thetas, holds = several(kinds)
    for found, theta, held in zip(values(thetas, holds), thetas, holds, strict=True):
        torch.testing.assert_close(found, value(theta, held))


@pytest.mark.parametrize("scale", [0.3, torch.tensor(0.3, dtype=torch.float64)], ids=type)
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_many_gradients_are_those_of_each(kinds, scale, sizes):
    thetas, holds = several(kinds)
    given = [torch.randn_like(theta) if i % 3 else None for i, theta in enumerate(thetas)]
    before = [None if g is None else g.clone() for g in given]
    together = add_gradients(given, thetas, holds, scale)
    for new, g, theta, held in zip(together, given, thetas, holds, strict=True):
        exact = [Hold(h.importance.double(), h.anchor.double()) for h in held]
        right = add_gradient(None if g is None else g.double(), theta.double(), exact, 0.3)
        torch.testing.assert_close(new, right.to(theta.dtype), atol=1e-3, rtol=1e-2)
        assert new is not g
    for g, old in zip(given, before, strict=True):
        assert g is None or torch.equal(g, old), "the given gradient was written to"


@pytest.mark.parametrize("number", [float, torch.tensor], ids=["floats", "tensors"])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_many_proximal_steps_are_those_of_each(kinds, adaptive, number, sizes):
    thetas, holds = several(kinds)
    scales = [0.0 if i % 5 == 4 else 0.2 + 0.1 * (i % 2) for i in range(len(thetas))]
    metrics = [Metric(t.float().abs(), 1.5, 1e-3) if adaptive else None for t in thetas]
    given = [None if m is None else Metric(m.square, number(1.5), m.offset) for m in metrics]
    expected = [theta.clone() for theta in thetas]
    for theta, held, scale, metric in zip(expected, holds, scales, metrics, strict=True):
        proximal_(theta, held, scale, metric)
    before = [theta.clone() for theta in thetas]
    proximals_(thetas, holds, [number(scale) for scale in scales], given)
    for theta, right, old, scale in zip(thetas, expected, before, scales, strict=True):
        torch.testing.assert_close(theta, right)
        assert torch.equal(theta, old) == (scale == 0 or theta.numel() == 0)


def test_what_nothing_holds_is_left_alone():
    theta = torch.randn(5)
    before = theta.clone()
    proximals_([theta], [[]], [1.0], [None])
    assert torch.equal(theta, before)
    assert values([theta], [[]])[0] == 0


class Meter(TorchDispatchMode):
    """How many operations there were, and how many elements the largest of them wrote."""

    def __init__(self):
        super().__init__()
        self.peak, self.calls = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.calls += 1
        if func not in (torch.ops.aten.view.default, torch.ops.aten.split.Tensor):
            tensors = made if isinstance(made, (list, tuple)) else [made]
            self.peak = max(self.peak, sum(t.numel() for t in tensors if torch.is_tensor(t)))
        return made


def test_no_copy_of_all_weights_is_made(monkeypatch):
    """Neither of one large parameter nor of many small ones together."""
    monkeypatch.setattr(parts, "PART", 1000)
    monkeypatch.setattr(many, "SMALL", 300)
    made = [make((50, n), dtype=torch.float32, seed=n) for n in (200, *[5] * 60)]
    thetas, holds = [theta for theta, _ in made], [held for _, held in made]
    metrics = [Metric(torch.rand_like(theta), 1.0, 1e-8) for theta in thetas]
    for metric in (metrics, [None] * len(thetas)):
        with Meter() as meter:
            proximals_(thetas, holds, [0.1] * len(thetas), metric)
        assert meter.peak <= 1000
    with Meter() as meter:
        values(thetas, holds)
    assert meter.peak <= 1000


def test_many_small_parameters_take_a_few_operations():
    made = [make((7, 5), dtype=torch.float32, seed=n) for n in range(100)]
    thetas, holds = [theta for theta, _ in made], [held for _, held in made]
    for act in (
        lambda: add_gradients(thetas, thetas, holds, 0.1),
        lambda: proximals_(thetas, holds, [0.1] * 100, [None] * 100),
        lambda: proximals_(
            thetas, holds, [0.1] * 100, [Metric(t.abs(), 1.0, 1e-8) for t in thetas]
        ),
    ):
        with Meter() as meter:
            act()
        assert meter.calls < 250, "and not a handful for each"


def test_a_part_is_never_much_larger_than_it_should_be():
    for shape in [(3000, 700), (7, 500_000), (1, 3, 300_000), (64, 64, 3, 3)]:
        sizes = [part.numel() for (part,) in parts.parts(torch.empty(shape))]
        assert sum(sizes) == torch.Size(shape).numel()
        assert max(sizes) <= parts.PART


# ---- nothing waits for an accelerator ----


class NoWaiting(TorchDispatchMode):
    """Fails where the host asks for a number that an accelerator computes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
            torch.ops.aten.item,
        }, "waits"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def accelerated(monkeypatch):
    """All tensors count as if they were on an accelerator."""
    for module in (hold, parts, many):
        monkeypatch.setattr(module, "is_accelerated", lambda tensor: True)


@pytest.mark.parametrize("large", [True, False])
def test_no_form_waits_for_an_accelerator(accelerated, monkeypatch, large):
    if large:
        monkeypatch.setattr(many, "ACCELERATED_SMALL", 0)
        monkeypatch.setattr(parts, "ACCELERATED_PART", 20_000)
    thetas, holds = several(KINDS["mixed"])
    rate, found = torch.tensor(0.1), torch.tensor(0.0)
    plain = [theta.clone() for theta in thetas]
    proximals_(plain, holds, [0.1] * len(thetas), [Metric(t.abs(), 2.0, 1e-8) for t in thetas])
    with NoWaiting():
        add_gradients([None, *thetas[1:]], thetas, holds, rate)
        values(thetas, holds)
        metrics = [Metric(t.abs(), rate * 20, 1e-8) for t in thetas]
        proximals_(thetas, holds, [rate * (1 - found)] * len(thetas), metrics)
    for theta, right in zip(thetas, plain, strict=True):
        torch.testing.assert_close(theta, right)
    leaf = thetas[5].clone().requires_grad_()
    told = []
    with NoWaiting():
        (Penalty.apply([holds[5]], 0.7, told.append, PenaltyChunks(), leaf) * rate).backward()
    assert torch.is_tensor(told[0])
    torch.testing.assert_close(leaf.grad, add_gradient(None, leaf.detach(), holds[5], 0.07))


def test_weights_that_moved_between_forward_and_backward_are_noticed():
    theta, held = make((5,))
    leaf = theta.clone().requires_grad_()
    total = Penalty.apply([held], 1.0, lambda _weight: None, PenaltyChunks(), leaf)
    with torch.no_grad():
        leaf.add_(1)
    with pytest.raises(
        StateError, match=r"moved since penalty\(\) was called.*again for each loss"
    ):
        total.backward()


def test_pulls_that_overflow_together_end_at_the_anchor():
    """Ω (θ − θ*) is beyond the range of single precision here, and the way home is not."""
    thetas = [torch.full((3,), 1e3), torch.full((2,), -1e3)]
    holds = [[Hold(torch.full_like(t, 1e37), torch.ones_like(t))] for t in thetas]
    proximals_(thetas, holds, [1.0, 1.0], [None, None])
    for theta in thetas:
        torch.testing.assert_close(theta, torch.ones_like(theta))


def test_what_goes_by_itself_keeps_no_other_from_going_together():
    small, large = torch.ones(3), torch.ones(many.SMALL + 1)
    held = [[Hold(torch.ones_like(t), torch.ones_like(t))] for t in (large, small, small, small)]
    held[2] = []
    found = many.Chunks().of([large, small, small, small], held)
    assert [chunk.at for chunk in found] == [[1, 3]]


@pytest.mark.parametrize("wide", [1, 0])
def test_a_part_of_what_is_not_contiguous_has_whole_rows(monkeypatch, wide):
    """Also where a row is just as large as a part."""
    monkeypatch.setattr(parts, "PART", 40)
    shape = (6, 40 if wide else 7)
    tensor = torch.empty(shape[::-1]).T
    found = [part for (part,) in parts.parts(tensor)]
    assert {part.shape[1] for part in found} == {shape[1]}
    assert sum(len(part) for part in found) == 6


@pytest.mark.parametrize("units", [(0.25,), (3.0,), (0.25, 3.0, 1.0)])
def test_each_omega_is_counted_in_its_own_unit(units):
    """Several, as of the tasks of EWC in 8 bits."""
    theta, held = make((5, 3), holds=len(units))
    plain = [Hold(unit * omega, star) for unit, (omega, star, _unit) in zip(units, held)]
    counted = [Hold(omega, star, unit) for unit, (omega, star, _unit) in zip(units, held)]
    torch.testing.assert_close(value(theta, counted), value(theta, plain))
    torch.testing.assert_close(
        add_gradient(None, theta, counted, 0.3), add_gradient(None, theta, plain, 0.3)
    )
    ends = theta.clone(), theta.clone()
    proximal_(ends[0], counted, 0.3)
    proximal_(ends[1], plain, 0.3)
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_differentiated_twice(unit):
    """Loops that look at the gradient's own gradient (AdaHessian, gradient penalties) get it."""
    generator = torch.Generator().manual_seed(0)

    def some():
        return torch.randn(5, 3, generator=generator, dtype=torch.float64)

    theta, vector = some().requires_grad_(), some()
    holds = [Hold(some().abs(), some(), unit), Hold(some().abs(), some(), unit)]
    weights = []
    plain = torch.autograd.grad(
        Penalty.apply([holds], 3.0, weights.append, PenaltyChunks(), theta), theta
    )[0]
    twofold = 2 * Penalty.apply([holds], 3.0, weights.append, PenaltyChunks(), theta)
    once = torch.autograd.grad(twofold, theta, create_graph=True)[0]
    torch.testing.assert_close(once.detach(), 2 * plain)
    assert [float(weight) for weight in weights] == [1, 2]
    # ∇²(λ Σ Ω (θ − θ*)²) v = 2λΩ v
    expected = 2 * 2 * 3.0 * unit * sum(hold.importance for hold in holds) * vector
    torch.testing.assert_close(torch.autograd.grad(once, theta, vector)[0], expected)
