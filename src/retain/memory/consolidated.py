"""What was consolidated: Ω and θ* of a task or of several, and how new importance joins them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from retain.errors import InputError, ModelError
from retain.importance import Importance, combined
from retain.lazily import MadeWhenAsked
from retain.parameters import Selection, named_parameters, shape_of, what_became_of
from retain.penalty import Hold, in_full
from retain.sharding import is_sharded, local, sharded_like

Merge = str | float


@dataclass(frozen=True)
class Consolidated:
    """One quadratic over the model: Ω and θ* by name.

    Attributes:
        importance: Ω as it is kept.
        anchor: θ*.
        samples: how many samples Ω is a mean over.
        squared_norm: the mean of ‖F(x)‖² over these samples, if known.
        precisions: in what Ω was computed.
        units: of those whose Ω is kept in 8 bits: Ω = unit · importance.

    Examples:
        >>> (term,) = retain.MAS(model).observe(loader).consolidate().terms  # a Consolidated
        >>> term.samples, sorted(term.anchor)
        (32, ['0.bias', '0.weight', '2.bias', '2.weight'])
    """

    importance: Mapping[str, Tensor]
    anchor: Mapping[str, Tensor]
    samples: int
    squared_norm: float | None = None
    precisions: tuple[str, ...] = ()
    units: Mapping[str, float] = field(default_factory=dict)

    def omega(self, name: str) -> Tensor:
        """Ω of a parameter, in single precision where it is kept in 8 bits.

        Examples:
            >>> memory = retain.MAS(model, dtype=torch.float8_e5m2).observe(loader).consolidate()
            >>> memory.terms[0].omega("0.weight").dtype
            torch.float32
        """
        return in_full(self.importance[name], self.units.get(name, 1.0))

    def omegas(self) -> Mapping[str, Tensor]:
        """Ω by name; what is kept in 8 bits is made when it is asked for.

        Examples:
            >>> (term,) = retain.MAS(model).observe(loader).consolidate().terms
            >>> sorted(term.omegas())
            ['0.bias', '0.weight', '2.bias', '2.weight']
        """
        if not self.units:
            return self.importance
        return MadeWhenAsked(self.importance, self.omega)


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


def merged(old: Consolidated | None, new: Importance, merge: Merge) -> Importance:
    """Ω of `old` and `new` together, each made when it is asked for.

    What only one of them has stays as it is.

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

    def both(name: str) -> Tensor:
        if name not in new:
            return old.omega(name) * faded
        if name not in old.importance:
            return new[name]
        # Ω ← a Ω + b Ω_new
        return old.omega(name).to(new[name]) * a + new[name] * b

    norm = combined((old.squared_norm, faded if decay is not None else a), (new.squared_norm, b))
    every = (*old.precisions, *new.precisions)
    total = MadeWhenAsked({**old.importance, **dict.fromkeys(new)}, both)
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
            elif p is not None and shape_of(p) == omega.shape:
                unit = term.units.get(name, 1.0)
                hold = Hold(local(omega), local(term.anchor[name]), unit)
                found.setdefault(name, (p, []))[1].append(hold)
            elif p is not None:
                wrong[name] = f"{name} {now_shaped(p, omega)}"
            elif selection.picks(name) and name not in named_parameters(model):
                wrong[name] = f"{name} {tuple(omega.shape)} {what_became_of(model, name)}"
    if wrong:
        raise ModelError(
            f"The model no longer fits its importance: {'; '.join(wrong.values())}. Leave these "
            "out with memory.exclude = […], or restore their shapes."
        )
    return found


def now_shaped(p: nn.Parameter, omega: Tensor) -> str:
    """In words, which shape a parameter had when it got its Ω, and which it has."""
    shape = shape_of(p)
    now = "has no shape before a batch gives it one" if shape is None else f"is {tuple(shape)}"
    return f"was {tuple(omega.shape)} and {now}"
