"""The torch optimizers inside what trainers hand out, and whether they can be held in a form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam

from retain.errors import InputError
from retain.memory.step_size import is_torchs_own, why_unknown

# Where wrappers keep what they wrap: Accelerate and DeepSpeed, Lightning, SAM, ZeRO and LARC;
# several of them in torchtitan and Megatron.
INSIDE = (
    "optimizer",
    "_optimizer",
    "base_optimizer",
    "optim",
    "optimizers",
    "chained_optimizers",
)
FOLLOWING = ("proximal", "adaptive")  # the forms that follow a step, in place of joining it


class FoundOptimizer(NamedTuple):
    """A torch optimizer, and everything around it that has a `step`, from the outside in."""

    optimizer: Optimizer
    around: tuple[Any, ...]


def optimizers_in(given: object, *, asked: str = "attach") -> list[FoundOptimizer]:
    """Every torch optimizer in `given`: itself, wrapped, or one of several; each once.

    Where one torch optimizer steps another (SAM, ZeRO), it is the inner one that moves weights.

    Raises:
        InputError: there is none; says what was given instead.
    """
    found: dict[int, FoundOptimizer] = {}
    for one in _found(given, (), set(), asked):
        found.setdefault(id(one.optimizer), one)
    if not found:
        raise InputError(
            f"{asked} got {'an empty ' + type(given).__name__}; expected a torch optimizer, a "
            "trainer's wrapper around one, or several of them."
        )
    return list(found.values())


def _found(
    given: Any, around: tuple[Any, ...], seen: set[int], asked: str
) -> Iterator[FoundOptimizer]:
    if id(given) in seen:
        return
    seen.add(id(given))
    members = _members(given)
    if members is not None:
        for member in members:
            yield from _found(member, around, seen, asked)
        return
    inner = _wrapped(given)
    if inner is not None:
        yield from _found(inner, (*around, given), seen, asked)
    elif isinstance(given, Optimizer) and "_optimizer_step_pre_hooks" in vars(given):
        yield FoundOptimizer(given, (*around, given))
    else:
        raise InputError(f"{asked} got {_what_else(given)}")


def _members(given: object) -> Iterable[Any] | None:
    """What a collection holds; None for anything else. Values of a mapping: {p: SGD([p]), …}."""
    if isinstance(given, Mapping):
        return list(given.values())
    plain = isinstance(given, (list, tuple, set, frozenset, Iterator))
    return list(given) if plain and isinstance(given, Iterable) else None


def _wrapped(given: Any) -> Any:
    """What `given` is a wrapper of; None if it is none. A scheduler is none, though it has one."""
    if isinstance(given, (type, Tensor)) or hasattr(given, "get_last_lr"):
        return None
    for name in INSIDE:
        inner = getattr(given, name, None)
        several = _members(inner) if isinstance(inner, (Mapping, list, tuple)) else [inner]
        if inner is not given and several and all(hasattr(one, "step") for one in several):
            return inner
    if isinstance(given, nn.Module) or not callable(getattr(given, "step", None)):
        return None
    # Whatever it is called: something with a step that keeps optimizers is there to step them.
    return [one for kept in getattr(given, "__dict__", {}).values() for one in _kept(kept)] or None


def _kept(attribute: object) -> list[Optimizer]:
    """The optimizers that an attribute holds: one, or several and nothing else."""
    if isinstance(attribute, Optimizer):
        return [attribute]
    plain = isinstance(attribute, (Mapping, list, tuple))
    several = list(_members(attribute) or ()) if plain else []
    return several if all(isinstance(one, Optimizer) for one in several) else []


def _what_else(given: object) -> str:
    kind = type(given).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    if isinstance(given, type):
        return (
            f"the class {given.__name__}; expected a torch optimizer that was made from it: "
            f"{given.__name__}(model.parameters(), …)."
        )
    if isinstance(given, nn.Module):
        return f"{article} {kind}, which is a model; expected a torch optimizer of its parameters."
    if isinstance(given, Tensor):
        return f"{article} {kind}; expected a torch optimizer that was made from it."
    if isinstance(given, Optimizer):
        return (
            f"{article} {kind} that never called Optimizer.__init__ and wraps no other; expected a "
            "torch optimizer."
        )
    if hasattr(given, "param_groups"):
        return (
            f"{article} {kind}; expected a torch optimizer: one that is not derived from "
            "torch.optim.Optimizer has no hooks around its steps. Add memory.penalty() to the "
            "loss instead."
        )
    return f"{article} {kind}; expected a torch optimizer."


def refuse_unheld(optimizers: Sequence[Optimizer], protected: Iterable[nn.Parameter]) -> None:
    """Nothing, if some of the `protected` parameters are in the optimizers.

    Raises:
        InputError: none is.
    """
    inside = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    if not any(id(p) in inside for p in protected):
        raise InputError(
            "The optimizer holds none of the protected parameters. Make it from "
            "model.parameters() of the same model, after moving or wrapping the model."
        )


def refuse_form(optimizer: Optimizer, form: object, forms: Sequence[str]) -> None:
    """Nothing, if steps of `optimizer` can be held in this form.

    Raises:
        InputError: it is none of `forms`, or cannot work; names those that can.
    """
    if not isinstance(form, str) or form not in forms:
        raise InputError(f"form={form!r}; expected {' or '.join(map(repr, forms))}.")
    reason = _why_not(optimizer, form)
    if reason is not None:
        work = [f'form="{f}"' for f in forms if f != form and _why_not(optimizer, f) is None]
        raise InputError(f'form="{form}" {reason}. Use {" or ".join(work)}.')


def _own_way(optimizer: Optimizer) -> str | None:
    """What an optimizer does that a move after its step does not fit; None if nothing is known."""
    if is_torchs_own(optimizer):
        return None
    if any("d" in group for group in optimizer.param_groups):  # D-Adaptation, Prodigy
        return 'multiplies group["lr"] by an estimate of its own, d'
    kinds = " ".join(kind.__name__ for kind in type(optimizer).__mro__).lower()
    if "schedulefree" in kinds or "madgrad" in kinds:
        return "makes them in the next from what it keeps beside them"
    return None


def _why_not(optimizer: Optimizer, form: str) -> str | None:
    name = type(optimizer).__name__
    if form == "gradient" and isinstance(optimizer, SparseAdam):
        return f"adds a dense gradient, and {name} takes sparse ones only"
    if form in FOLLOWING:
        own = _own_way(optimizer)
        if own is not None:
            return f"moves the weights after a step, and {name} {own}"
        if any("lr" not in group for group in optimizer.param_groups):
            return 'needs the learning rate as group["lr"], which this optimizer lacks'
        rates = [group["lr"] for group in optimizer.param_groups]
        wrong = [r for r in rates if isinstance(r, bool) or not isinstance(r, (int, float, Tensor))]
        if wrong:
            return f'needs a number as group["lr"], and {name} has {wrong[0]!r}'
    if form == "adaptive":
        unknown = why_unknown(optimizer)
        if unknown is not None:
            return f"needs the size of each weight's own step, and {unknown}"
    return None
