"""One formula, three forms: value, gradient, proximal step."""

from __future__ import annotations

import pytest
import torch

from retain import penalty
from retain.penalty import Hold, Penalty, add_gradient, proximal_, value

SHAPES = [(), (7,), (5, 3), (2, 3, 4, 5), (300, 700), (70_001,), (1, 70_000), (3, 0)]


def make(shape, holds=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw(), [Hold(draw().abs(), draw()) for _ in range(holds)]


def plainly(theta, holds):
    """Σ Ω (θ − θ*)², as it is written."""
    return sum((omega * (theta - star) ** 2).sum() for omega, star in holds)


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
    total = Penalty.apply([held], 0.7, lambda _weight: None, leaf)
    torch.testing.assert_close(total, 0.7 * plainly(theta, held))
    (5 * total).backward()
    torch.testing.assert_close(leaf.grad, add_gradient(None, theta, held, 3.5))


def test_gradcheck():
    theta, held = make((4, 3), holds=2)
    leaf = theta.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: Penalty.apply([held], 0.7, lambda _weight: None, t), (leaf,)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_proximal_step_is_the_closed_form(shape):
    theta, held = make(shape)
    (omega, star), scale = held[0], 0.3
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
    held = [Hold(*(t.to(stored) for t in held[0]))]
    exact = [Hold(*(t.double() for t in held[0]))]
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


def test_all_at_once_is_one_by_one():
    many = [make(shape, holds=2, dtype=torch.float32, seed=i) for i, shape in enumerate(SHAPES)]
    thetas, holds = [t for t, _ in many], [h for _, h in many]
    gradients = [torch.randn_like(t) for t in thetas]
    together = penalty._add_gradients_at_once(gradients, thetas, holds, 0.3)
    for new, *one in zip(together, gradients, thetas, holds):
        torch.testing.assert_close(new, add_gradient(*one, 0.3))


def test_a_part_is_never_much_larger_than_it_should_be():
    for shape in [(3000, 700), (7, 500_000), (1, 3, 300_000), (64, 64, 3, 3)]:
        parts = [part.numel() for (part,) in penalty._parts(torch.empty(shape))]
        assert sum(parts) == torch.Size(shape).numel()
        assert max(parts) <= penalty.PART


def test_weights_that_moved_between_forward_and_backward_are_noticed():
    theta, held = make((5,))
    leaf = theta.clone().requires_grad_()
    total = Penalty.apply([held], 1.0, lambda _weight: None, leaf)
    with torch.no_grad():
        leaf.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()
