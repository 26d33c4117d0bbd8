"""Which tensor of another model, state dict or checkpoint is which weight of ours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Size, Tensor

from retain.parameters import canonical, shape_of

PREFIX = "module."  # before every name in the state dict of a wrapped model
# Where training scripts put the weights beside other things.
WRAPPED_IN = ("state_dict", "model_state_dict", "model")
NAMED = 5  # tensors in a warning


def plain_names(given: Iterable[str], held: Iterable[str]) -> dict[str, str]:
    """Plain name -> name as given: without what wrappers put into it, or before every name.

    Args:
        given: names of a state dict.
        held: the names that are looked for.
    """
    names = {canonical(name): name for name in given}
    if any(name.startswith(PREFIX) for name in held):
        return names  # it is a module of the model's own that is called so
    while names and all(name.startswith(PREFIX) for name in names):
        names = {name.removeprefix(PREFIX): there for name, there in names.items()}
    return names


def in_a_checkpoint(given: Mapping[Any, Any]) -> str:
    """Under which key a training script's checkpoint has the state dict; "" if it is none."""
    return next((key for key in WRAPPED_IN if isinstance(given.get(key), Mapping)), "")


def lookalike(name: str, shape: Size | None, there: Mapping[str, Tensor]) -> str:
    """What a missing weight may be called there, as a remark to stand behind its name.

    Of its shape, and at the end of a longer name (`model.0.weight` for `0.weight`), or farther
    inside the same module (`0.linear.weight`, as adapters of one's own have it).
    """
    module, _, attribute = name.rpartition(".")
    inside = f"{module}." if module else ""
    for other, tensor in there.items():
        longer = other.endswith(f".{name}")
        deeper = other.startswith(inside) and other.endswith(f".{attribute}")
        if (longer or deeper) and shape_of(tensor) == shape:
            return f" ({other} there has its shape)"
    return ""


# To be said where a lookalike was found.
REMEDY = (
    " Take off what stands before the names, or merge adapters of your own into the weights first "
    "(W + B A under the old name)."
)


def beside(there: Mapping[str, Tensor], known: Collection[str], held: Iterable[str]) -> list[str]:
    """Names of what stands in the same modules as held weights, and was not there before.

    Such as the factors of an adapter: the output depends on them, and no held weight says so.
    """
    modules = {name.rpartition(".")[0] for name in held}
    return [
        name
        for name, tensor in there.items()
        if name not in known and tensor.is_floating_point() and _within(name, modules)
    ]


def _within(name: str, modules: Collection[str]) -> bool:
    path = name.split(".")[:-1]
    if not path:
        return "" in modules
    return any(".".join(path[:depth]) in modules for depth in range(1, len(path) + 1))


def few(names: Collection[str]) -> str:
    """The first few names."""
    shown = list(names)[:NAMED]
    return ", ".join(shown) + (", …" if len(names) > NAMED else "")
