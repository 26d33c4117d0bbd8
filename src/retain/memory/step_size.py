"""How far an optimizer moves each weight for a gradient that lasts: its own η."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.errors import InputError
from retain.penalty import Metric, Number, on_host
from retain.penalty.hold import is_accelerated
from retain.sharding import is_sharded

# Optimizers whose steps are of no size for each weight: lengths from a line search, signs, whole
# matrices made orthogonal, squares kept by row and column.
WITHOUT = ("LBFGS", "Rprop", "Muon", "Adafactor")

# What the optimizers below are set by, and what they keep of a weight, under torch's own names. One
# that has more of either (a trust ratio, a sum of projections) goes by it, too.
SETTINGS = frozenset(
    {
        "lr", "betas", "eps", "weight_decay", "amsgrad", "momentum_decay",
        "decoupled_weight_decay", "bias_correction", "correct_bias", "momentum", "dampening",
        "nesterov", "alpha", "centered", "lr_decay", "initial_accumulator_value", "rho", "lambd",
        "t0", "maximize", "foreach", "fused", "capturable", "differentiable", "caution",
        "corrected_weight_decay", "max_lr_snapshot",
    }
)  # fmt: skip
KEPT = frozenset(
    {
        "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product",
        "momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum", "eta", "mu", "ax",
    }
)  # fmt: skip


def step_sizes(
    optimizer: Optimizer, moved: Sequence[tuple[nn.Parameter, Mapping[str, Any]]]
) -> list[tuple[Number, Metric | None]]:
    """`step_size` of every parameter, given with its group."""
    factors = _factors(optimizer, moved)
    return [step_size(optimizer, group, p, factors.get(id(p))) for p, group in moved]


def step_size(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    p: nn.Parameter,
    factor: Number | None = None,
) -> tuple[Number, Metric | None]:
    """(η, H): the optimizer moves `p` by η/H, weight by weight, for a lasting gradient of one.

    With this η/H in the proximal step, training comes to rest where the gradients of the task's
    loss and of the penalty cancel, whatever the optimizer: λ means the same for SGD with and
    without momentum, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta and ASGD. For
    others it is the learning rate. What is kept on an accelerator stays there.

    Args:
        optimizer: whose steps.
        group: that the parameter is in.
        p: the parameter.
        factor: (1 − β₂ᵗ)^-½, if it is known already.

    Raises:
        InputError: an optimizer with Adam's settings that keeps something else than Adam.
    """
    rate = on_host(group["lr"])
    state: Mapping[str, Any] = optimizer.state.get(p, {})
    if not state:
        return rate * _lasting(group), None
    _refuse_more(optimizer, state)
    eps = group.get("eps", 0.0)
    if _fits(state.get("exp_avg_sq"), p) and "betas" in group:
        # Adam: θ ← θ − η m̂ / (√v̂ + ε),   v̂ = v / (1 − β₂ᵗ)
        square = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        if factor is None:
            factor = _unbiased(optimizer, group, state)
        return rate, Metric(_unpacked(square), factor, eps)
    if _fits(state.get("exp_inf"), p) and "betas" in group:
        # Adamax: θ ← θ − η m̂ / u
        return rate, Metric(state["exp_inf"].square(), 1.0, 0.0)
    if "betas" in group and "eps" in group:
        raise _cannot_tell(optimizer, f"keeps {', '.join(state)}, and no exp_avg_sq as Adam does")
    if _fits(state.get("acc_delta"), p) and "rho" in group:
        # Adadelta: θ ← θ − η √(u + ε) / √(v + ε) g
        square = (state["square_avg"] + eps).div_(state["acc_delta"] + eps)
        return rate, Metric(square, 1.0, 0.0)
    if _fits(state.get("square_avg"), p) and "alpha" in group:
        # RMSprop: θ ← θ − η g / (√v + ε),   v − ḡ² in place of v if it is centered
        square = state["square_avg"]
        if group.get("centered"):
            square = square.addcmul(state["grad_avg"], state["grad_avg"], value=-1).clamp_(min=0)
        return rate * _lasting(group), Metric(square, 1.0, eps)
    if _fits(state.get("sum"), p) and "lr_decay" in group:
        # Adagrad: θ ← θ − η/(1 + (t − 1)·decay) g / (√Σg² + ε)
        decayed = 1 + (on_host(state["step"]) - 1) * float(group["lr_decay"])
        return rate / decayed, Metric(state["sum"], 1.0, eps)
    if "eta" in state and "lambd" in group:
        # ASGD: θ ← θ − η_t g
        return on_host(state["eta"]), None
    return rate * _lasting(group), None


def why_unknown(optimizer: Optimizer) -> str | None:
    """Why an optimizer's step has no size for each weight; None if it has, as far as can be told.

    Raises:
        InputError: its state says so, as in `step_size`.
    """
    kinds = {kind.__name__ for kind in type(optimizer).__mro__}
    named = sorted(kinds.intersection(WITHOUT))
    if named:
        return f"the steps of {named[0]} have no size for each weight alone"
    if "Optimizer8bit" in kinds:  # the base of all of bitsandbytes
        return f"{type(optimizer).__name__} of bitsandbytes keeps its means packed"
    more = _further_settings(optimizer)
    if more:
        return f"{type(optimizer).__name__} has settings of its own ({', '.join(more)})"
    for group in optimizer.param_groups:
        betas, eps = group.get("betas"), group.get("eps", 0.0)
        if isinstance(eps, Tensor) or not isinstance(eps, (int, float)):
            return f"its eps={eps!r} is not one number"
        if betas is not None and ("eps" not in group or len(betas) != 2):
            return "its steps are not divided by the root of a mean of squares"
        for p in group["params"]:
            step_size(optimizer, group, p)
    return None


def _further_settings(optimizer: Optimizer) -> list[str]:
    """The settings by which it may go besides those that are known; None and False are off."""
    if is_torchs_own(optimizer):
        return []
    return sorted(
        name
        for name in {*optimizer.defaults} - SETTINGS
        if any(group.get(name) not in (None, False) for group in optimizer.param_groups)
    )


def is_torchs_own(optimizer: Optimizer) -> bool:
    """Whether it is one of torch.optim, and not derived from it."""
    kind: Any = type(optimizer)  # whose instances, and not it, have a hash of their own
    return _is_of_torch(kind)


@lru_cache(maxsize=256)  # asked again at every step, for every parameter
def _is_of_torch(kind: Any) -> bool:
    return f"{kind.__module__}.".startswith("torch.optim.")


def other_forms(form: str) -> str:
    """The forms that need no step size, to be named in an error about `form`."""
    return " or ".join(f'form="{other}"' for other in ("gradient", "proximal") if other != form)


def _unbiased(optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]) -> Number:
    """(1 − β₂ᵗ)^-½, or 1 where the means are taken as they are."""
    if not _is_unbiased(group):
        return 1.0
    count = state.get("step", group.get("step"))  # of a whole group, as Apex counts
    if count is None:
        raise _cannot_tell(optimizer, "does not say as step how many steps it took")
    return (1 - on_host(group["betas"][1]) ** on_host(count)) ** -0.5


def _unpacked(kept: Any) -> Tensor:
    """A state that is kept in few bits (torchao's), as plain numbers; any other as it is."""
    packed = type(kept) is not Tensor and not is_sharded(kept) and hasattr(kept, "block_size")
    plain: Tensor = kept.dequantize() if packed else kept
    return plain


def _refuse_more(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    if is_torchs_own(optimizer):
        return
    more = [name for name, kept in state.items() if name not in KEPT and isinstance(kept, Tensor)]
    if more:
        raise _cannot_tell(optimizer, f"keeps more than is known here ({', '.join(more)})")


def _cannot_tell(optimizer: Optimizer, why: str) -> InputError:
    return InputError(
        f'{type(optimizer).__name__} {why}: form="adaptive" cannot tell how far it moves a weight. '
        f"Use {other_forms('adaptive')}."
    )


def _factors(
    optimizer: Optimizer, moved: Sequence[tuple[nn.Parameter, Mapping[str, Any]]]
) -> dict[int, Number]:
    """(1 − β₂ᵗ)^-½ of those with a t of their own, by id: once for all that agree in t.

    Where only a device knows t, in a few kernels for a whole group.
    """
    counted: dict[int, list[tuple[nn.Parameter, Tensor]]] = {}
    groups: dict[int, Mapping[str, Any]] = {}
    for p, group in moved:
        state = optimizer.state.get(p)
        step = state.get("step") if state and "exp_avg_sq" in state else None
        if isinstance(step, Tensor):
            counted.setdefault(id(group), []).append((p, step))
            groups[id(group)] = group
    found: dict[int, Number] = {}
    for key, alike in counted.items():
        group = groups[key]
        if "betas" not in group or not _is_unbiased(group):
            continue
        beta, steps = on_host(group["betas"][1]), [step for _p, step in alike]
        factors: Sequence[Number]
        if any(map(is_accelerated, steps)):
            factors = (1 - beta ** torch.stack(steps)).rsqrt_().unbind()
        else:
            counts = list(map(float, steps))
            once = {count: (1 - beta**count) ** -0.5 for count in set(counts)}
            factors = [once[count] for count in counts]
        found.update({id(p): one for (p, _step), one in zip(alike, factors, strict=True)})
    return found


def _is_unbiased(group: Mapping[str, Any]) -> bool:
    """Whether its means are divided by what their beginning at 0 makes of them."""
    return bool(group.get("bias_correction", True) and group.get("correct_bias", True))


def _lasting(group: Mapping[str, Any]) -> float:
    """What momentum makes of a gradient that lasts: (1 − dampening) Σ μᵏ = (1 − d)/(1 − μ)."""
    momentum = float(group.get("momentum") or 0.0)
    if not 0 < momentum < 1:
        return 1.0
    return (1 - float(group.get("dampening") or 0.0)) / (1 - momentum)


def _fits(state: object, p: nn.Parameter) -> bool:
    return isinstance(state, torch.Tensor) and state.shape == p.shape
