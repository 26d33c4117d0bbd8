"""Under autocast: Ω as exact as the type allows, and nothing vanishes or overflows unseen."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import retain
from retain.errors import NonFiniteError

HALF, BRAIN = torch.float16, torch.bfloat16
NEAR = {HALF: 0.03, BRAIN: 0.03}  # ‖Ω − float64's‖ ≤ of its norm


def _truth(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """1/N Σ |∂‖F(x)‖²/∂θ|, one sample at a time, in double precision."""
    wide = copy.deepcopy(model).double().eval()
    parameters = dict(wide.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for one in x.double():
        score = wide(one[None]).square().sum()
        found = torch.autograd.grad(score, list(parameters.values()))
        for name, g in zip(parameters, found):
            total[name] += g.abs() / len(x)
    return total


def _off(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


def _layers(*scales: float) -> nn.Sequential:
    """Layers of 8 units, each weight scaled so."""
    layers: list[nn.Module] = []
    for scale in scales:
        layer = nn.Linear(8, 8)
        with torch.no_grad():
            layer.weight.mul_(scale)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _images() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 6, 3, bias=False),
        nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    with torch.no_grad():
        for module in model.train():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)  # type: ignore[union-attr,operator]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
    return model


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_batch_norm_in_eval_mode(dtype: torch.dtype) -> None:
    model, x = _images(), torch.randn(7, 3, 6, 6)
    truth = _truth(model, x)
    with torch.autocast("cpu", dtype), warnings.catch_warnings():
        warnings.simplefilter("error")
        observed = retain.MAS(model).observe([x], progress=False).observed
    assert not {"loop", "masked", "unused", "no gradient"} & set(observed.routes.values())
    for name, omega in observed.items():
        assert _off(omega, truth[name]) <= NEAR[dtype], name


@pytest.mark.parametrize(
    ("scale", "power"), [(1e-6, 1), (1e-3, 1), (1.0, 1), (1e4, 1), (1e-6, 2), (1e-3, 2), (1.0, 2)]
)
def test_whatever_the_size_of_the_outputs(scale: float, power: int) -> None:
    """Weights of float16's whole range and beyond make the same Ω, to its digits."""
    model, x = _layers(1, 1, 1), torch.randn(9, 8)
    with torch.no_grad():
        model[4].bias.zero_()  # type: ignore[union-attr,operator]
    score = 8 * scale

    def output(returned: Tensor) -> Tensor:
        return returned.float() * score  # in float32: what is small is not yet rounded

    make = retain.MAS if power == 1 else lambda *a, **k: retain.EWC(*a, fisher="exact", **k)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", HALF):
            half = make(model, output=output).observe([x], progress=False).observed
        wide = make(model, output=output).observe([x], progress=False).observed
    for name, omega in half.items():
        assert _off(omega, wide[name].double()) <= NEAR[HALF], name
        assert omega.any()


class Within(nn.Module):
    """Autocast inside of the model, which nobody outside can switch off."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", HALF):
            out: Tensor = self.layers(x).float()
        return out


@pytest.mark.parametrize("n", [1, 9])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda layers: layers, "lie below the range of float16"),
        (Within, "zero in float16.*may lie below"),
    ],
    ids=["around", "within"],
)
def test_what_vanishes_is_said(make: Callable[[nn.Module], nn.Module], said: str, n: int) -> None:
    model = make(_layers(1, 1e-8, 1e-5, 1))
    with torch.autocast("cpu", HALF, enabled=not isinstance(model, Within)):
        memory = retain.MAS(model)
        with pytest.warns(UserWarning, match=rf"0\.weight.*{said}.*bfloat16") as told:
            memory.observe([torch.randn(n, 8)], progress=False)
    (ours,) = [one for one in told if "float16" in str(one.message)]
    assert ours.filename == __file__
    assert "6.weight" not in str(ours.message)


def test_outputs_that_vanish_are_said() -> None:
    model = _layers(1, 1e-7)
    with torch.no_grad():
        model[2].bias.zero_()  # type: ignore[union-attr,operator]
    with torch.autocast("cpu", HALF), pytest.warns(UserWarning, match="below the range of float16"):
        retain.MAS(model).observe([torch.randn(9, 8)], progress=False)


def test_what_is_zero_anyhow_is_not_said() -> None:
    """A unit that is dead for all data has no gradient in any type."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.fill_(-100)  # type: ignore[union-attr,operator]
    with torch.autocast("cpu", HALF), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        retain.MAS(model).observe([torch.randn(9, 8)], progress=False)
    assert not [one for one in told if "float16" in str(one.message)]


def test_a_batch_that_overflows_is_scaled_down() -> None:
    model, x = _layers(1, 1, 1), torch.randn(9, 8)
    size = torch.ones(9)

    def output(returned: Tensor) -> Tensor:
        return returned.float() * size[: len(returned), None]

    memory = retain.MAS(model, output=output)
    with torch.autocast("cpu", HALF):
        memory.observe([x], progress=False)
        size = size * 1e4
        memory.observe([x], progress=False)
    wide = retain.MAS(model, output=output).observe([x], progress=False).observed
    for name, omega in memory.observed.items():
        assert _off(2 * omega, wide[name].double()) <= NEAR[HALF], name


def test_what_overflows_all_the_same_is_an_error() -> None:
    """Activations beyond the type: no scaling of scores helps."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.fill_(3e4)  # type: ignore[union-attr,operator]
    memory = retain.MAS(model)
    with torch.autocast("cpu", HALF), pytest.raises(NonFiniteError, match="Nothing is kept"):
        memory.observe([torch.ones(9, 8)], progress=False)
    assert memory.observed.samples == 0


def test_the_first_of_a_process() -> None:
    """Nothing that is set up once may be set up in the caller's autocast."""
    code = (
        "import torch, retain\nfrom torch import nn\n"
        "model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), "
        "nn.Linear(64, 3))\n"
        "with torch.autocast('cpu', torch.{dtype}):\n"
        "    memory = retain.{method}(model).observe([torch.randn(6, 1, 6, 6)], progress=False)\n"
        "assert all(omega.any() for omega in memory.observed.values())\n"
    )
    for dtype, method in (("bfloat16", "MAS"), ("float16", "EWC")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(dtype=dtype, method=method)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
