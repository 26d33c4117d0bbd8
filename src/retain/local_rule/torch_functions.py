"""What a function of torch does with the tensors that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Function = Callable[..., Any]


def _all(*names: str) -> frozenset[Any]:
    return frozenset(
        getattr(home, n) for home in (torch, Tensor, F) for n in names if hasattr(home, n)
    )


# The same numbers in another shape or tensor.
REARRANGING = _all(
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "contiguous", "squeeze"),
    *("unsqueeze", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "clone", "detach"),
    *("view_as", "reshape_as"),
) | {vars(torch._C.TensorBase)[name].__get__ for name in ("T", "mT", "data")}

# What may stand between a head and the value that the model returns.
FINISHING = _all("softmax", "log_softmax", "float", "double", "half", "bfloat16", "to", "type_as")

DROPOUTS = _all(
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"
)
BATCH_NORM = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)
NOT_IN_PLACE = {"__invert__", "__index__", "__int__"}


class Step(NamedTuple):
    """A function of torch and what it is called with."""

    func: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def first(self) -> Any:
        """The first argument: what a function of one tensor works on."""
        return self.args[0] if self.args else None


def rearranges(step: Step) -> bool:
    """Whether the result has the numbers of the first argument, and they have not changed."""
    dropout = step.func in DROPOUTS and step.kwargs.get("training") is False
    return dropout or step.func in REARRANGING


def eval_batch_norm(step: Step) -> Tensor | None:
    """Batch-norm's factor for each channel, γ / √(σ² + ε), where it uses running statistics."""
    if step.func is not F.batch_norm:
        return None
    given = dict(zip(BATCH_NORM, step.args)) | step.kwargs
    if given.get("training", False) or given["running_var"] is None:
        return None
    scale = torch.rsqrt(given["running_var"] + given.get("eps", 1e-5))
    gamma = given.get("weight")
    return scale if gamma is None else scale * gamma.detach()


def written(step: Step) -> Tensor | None:
    """The tensor that the function overwrites, if any."""
    out = step.kwargs.get("out")
    if isinstance(out, Tensor):
        return out
    if not isinstance(step.first, Tensor) or rearranges(step):
        return None
    name = getattr(step.func, "__name__", "")
    dunder = name.endswith("__")
    in_place = (
        step.kwargs.get("inplace") is True
        or (name.endswith("_") and not dunder)
        or (name.startswith("__i") and dunder and name not in NOT_IN_PLACE)
        or name == "__setitem__"
    )
    return step.first if in_place else None


def tensors_given(step: Step) -> Iterator[Tensor]:
    """The tensors among the arguments, also those in a list such as that of `torch.cat`."""
    for value in (*step.args, *step.kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (item for item in value if isinstance(item, Tensor))


def makes_numbers(result: Any) -> bool:
    """Whether something that could be differentiated comes out: not a shape, a mask or an index."""
    values = result if isinstance(result, (tuple, list)) else (result,)
    return any(isinstance(v, Tensor) and v.is_floating_point() for v in values)


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether writing to one may change the other."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
