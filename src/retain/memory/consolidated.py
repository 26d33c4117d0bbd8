"""What was consolidated: Ω and θ* of a task or of several, and how new importance joins them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from retain.errors import InputError, ModelError, NonFiniteError
from retain.importance import Importance, combined
from retain.parameters import Selection, named_parameters, snapshot, what_became_of
from retain.penalty import Hold
from retain.sharding import is_sharded, local, sharded_like

Merge = str | float


@dataclass(frozen=True)
class Consolidated:
    """One quadratic over the model: Ω and θ* by name, and how many samples Ω is a mean over.

    `squared_norm` is the mean of ‖F(x)‖² over these samples, if known; `precisions` says in what Ω
    was computed.
    """

    importance: Mapping[str, Tensor]
    anchor: Mapping[str, Tensor]
    samples: int
    squared_norm: float | None = None
    precisions: tuple[str, ...] = ()


def sharded(
    terms: tuple[Consolidated, ...], parameters: Mapping[str, nn.Parameter]
) -> tuple[Consolidated, ...]:
    """The same terms, with Ω and θ* sharded over the ranks as the parameters are by now."""

    def placed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: sharded_like(t, parameters.get(n)) for n, t in tensors.items()}

    def as_it_is(term: Consolidated) -> bool:
        return all(
            is_sharded(t) or not is_sharded(parameters.get(n)) for n, t in term.anchor.items()
        )

    if all(as_it_is(term) for term in terms):
        return terms
    return tuple(
        replace(term, importance=placed(term.importance), anchor=placed(term.anchor))
        for term in terms
    )


@dataclass(frozen=True)
class Storage:
    """In which type and where Ω and θ* are kept; None: single precision Ω, θ* like the weights."""

    dtype: torch.dtype | None = None
    device: torch.device | None = None

    def settings(self) -> dict[str, str | None]:
        """Both as a file can hold them."""
        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return {"dtype": dtype, "device": None if self.device is None else str(self.device)}

    def term(
        self,
        means: Importance,
        parameters: Mapping[str, nn.Parameter],
        anchor: Mapping[str, Tensor],
    ) -> Consolidated:
        """Ω = `means`, anchored to `parameters` as they are now; `anchor` for those not among them.

        Raises:
            NonFiniteError: an importance that the type cannot hold.
        """
        kept = {name: omega.to(self.device, self.dtype) for name, omega in means.items()}
        bad = [name for name, omega in kept.items() if not torch.isfinite(local(omega)).all()]
        if bad:
            finite = all(torch.isfinite(local(means[name])).all() for name in bad)
            raise NonFiniteError(
                f"The importance of {', '.join(bad)} "
                + (
                    f"does not fit into {self.dtype}. Use dtype=torch.bfloat16, which has the "
                    "range of single precision."
                    if finite
                    else "is NaN or infinite. Did training diverge?"
                )
            )
        now = {
            name: snapshot(parameters[name], self.dtype, self.device)
            if name in parameters
            else anchor[name]
            for name in means
        }
        return Consolidated(kept, now, means.samples, means.squared_norm, means.precisions)


def merged(old: Consolidated | None, new: Importance, merge: Merge) -> Importance:
    """Ω of `old` and `new` together; what only one of them has stays as it is.

    "sum": Ω ← Ω + Ω_new (MAS). "pool": the mean over all samples. A decay γ: Ω ← γΩ + Ω_new.

    Raises:
        InputError: another `merge`.
    """
    decay = _decay(merge)
    if old is None:
        return new
    samples = old.samples + new.samples
    a, b = (decay, 1.0) if decay is not None else (old.samples / samples, new.samples / samples)
    faded = 1.0 if decay is None else decay
    total = {name: omega * faded for name, omega in old.importance.items()}
    # Ω ← a Ω + b Ω_new
    for name, omega in new.items():
        before = old.importance.get(name)
        total[name] = omega if before is None else before.to(omega) * a + omega * b
    norm = combined((old.squared_norm, faded if decay is not None else a), (new.squared_norm, b))
    every = (*old.precisions, *new.precisions)
    return Importance(total, samples, squared_norm=norm, precisions=every)


def _decay(merge: Merge) -> float | None:
    """How much of the old Ω stays; None for "pool"."""
    if merge == "sum":
        return 1.0
    if merge == "pool":
        return None
    if isinstance(merge, (int, float)) and not isinstance(merge, bool) and 0 <= merge < 1:
        return float(merge)
    raise InputError(
        f'merge={merge!r}; expected "sum", "pool", or a decay of at least 0 and below 1.'
    )


def holds(
    model: nn.Module, selection: Selection, terms: Sequence[Consolidated]
) -> dict[str, tuple[nn.Parameter, list[Hold]]]:
    """Name -> the parameter and the quadratics on it, for what is selected and has importance.

    Raises:
        ModelError: parameters with importance that are gone or have another shape; names all.
    """
    picked = selection.matching(model)
    found: dict[str, tuple[nn.Parameter, list[Hold]]] = {}
    wrong: dict[str, str] = {}
    for term in terms:
        for name, omega in term.importance.items():
            p = picked.get(name)
            if p is not None and is_sharded(omega) and not is_sharded(p):
                wrong[name] = f"{name} is not sharded for now (call reshard() on its module)"
            elif p is not None and p.shape == omega.shape:
                hold = Hold(local(omega), local(term.anchor[name]))
                found.setdefault(name, (p, []))[1].append(hold)
            elif p is not None:
                wrong[name] = f"{name} was {tuple(omega.shape)} and is {tuple(p.shape)}"
            elif selection.picks(name) and name not in named_parameters(model):
                wrong[name] = f"{name} {tuple(omega.shape)} {what_became_of(model, name)}"
    if wrong:
        raise ModelError(
            f"The model no longer fits its importance: {'; '.join(wrong.values())}. "
            "Leave these out with memory.exclude = […], or give the model back its shape."
        )
    return found
