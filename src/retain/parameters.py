"""Which weights: their names, `include=` and `exclude=`, and copies of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter, is_lazy

from retain.closest import did_you_mean
from retain.errors import InputError, ModelError
from retain.saying import warn
from retain.sharding import is_sharded

# Wrappers put these into the middle of names; without them a file outlives compiling and wrapping.
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})

Patterns = str | Iterable[str] | None
Weights = Mapping[str, Tensor]  # by name


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """In which sums over many numbers of a type are kept: double stays, all else is single."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DistributedDataParallel` and `DataParallel`.

    Raises:
        InputError: `model` is not an `nn.Module`.
    """
    while isinstance(model, nn.Module):
        wrapped = isinstance(model, (DistributedDataParallel, DataParallel))
        inner = getattr(model, "module" if wrapped else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
    raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module.")


def canonical(name: str) -> str:
    """`name` without what wrappers put into it."""
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter of `model` under its canonical name; one that is tied appears once."""
    return {name: p for name, (p, _aliases) in _with_aliases(model).items()}


def _with_aliases(model: nn.Module) -> dict[str, tuple[nn.Parameter, list[str]]]:
    """Canonical name -> the parameter and all names that it goes by (more than one when tied)."""
    names: dict[int, str] = {}
    found: dict[str, tuple[nn.Parameter, list[str]]] = {}
    for raw, p in unwrapped(model).named_parameters(remove_duplicate=False):
        alias = canonical(raw)
        name = names.setdefault(id(p), alias)
        found.setdefault(name, (p, []))[1].append(alias)
    return found


def is_adapters(name: str) -> bool:
    """Whether a parameter of this name is part of an adapter, as PEFT names them."""
    return any(part.startswith("lora_") for part in name.split("."))


def has_adapters(model: nn.Module) -> bool:
    """Whether `model` is one of PEFT's, which can merge its adapters into the weights."""
    return callable(getattr(unwrapped(model), "merge_and_unload", None))


def merged_copy(model: nn.Module) -> nn.Module:
    """A copy of `model`, with PEFT's adapters merged into the weights."""
    twin = copy.deepcopy(unwrapped(model))
    merged: nn.Module = twin.merge_and_unload() if has_adapters(twin) else twin  # type: ignore[operator]
    return merged


def refuse_unmerged(names: Iterable[str], what: str) -> None:
    """Names of a state dict say nothing of how much adapters add: their scale is not in it.

    Raises:
        InputError: there are adapters among the names.
    """
    adapters = [name for name in names if is_adapters(name)]
    if adapters:
        raise InputError(
            f"{what} has {len(adapters)} tensors of adapters beside the weights, such as "
            f"{adapters[0]}. Merge them first (merge_and_unload()), or give the PeftModel itself; "
            "to `retain repair` also the folder that save_pretrained() wrote."
        )


def shape_of(p: Tensor) -> torch.Size | None:
    """The shape of a tensor; None in a lazy layer that no batch has gone through."""
    return None if is_lazy(p) else p.shape


def shape_there(p: Tensor) -> str:
    """The same in a message."""
    shape = shape_of(p)
    return "without a shape yet" if shape is None else str(tuple(shape))


def unusable(weights: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    """What is wrong with those of the weights that are no finite real numbers, one phrase each."""
    wrong = []
    for name in names:
        weight = weights[name]
        if is_lazy(weight):
            wrong.append(f"{name} has no shape yet")
        elif weight.is_nested or weight.layout is not torch.strided:
            wrong.append(f"{name} is not dense")
        elif not weight.is_floating_point():
            wrong.append(f"{name} is {str(weight.dtype).removeprefix('torch.')}")
        elif weight.is_meta:
            wrong.append(f"{name} is on the meta device, without values")
        elif not is_finite(weight):
            wrong.append(f"{name} holds NaN or infinity")
    return wrong


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity; those of 8 bits cannot be asked as they are."""
    return bool(torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor).all())


def what_became_of(model: nn.Module, name: str) -> str:
    """In words, why `model` has no parameter that goes by this name alone."""
    tied = next((n for n, (_p, names) in _with_aliases(model).items() if name in names), None)
    if tied is not None:
        return f"is now the same parameter as {tied}"
    module, _, attribute = name.rpartition(".")
    inside = f"{module}." if module else ""
    made_of = [
        n
        for n in named_parameters(model)
        if n.startswith(f"{inside}parametrizations.{attribute}.")
        or n in [f"{inside}{attribute}_{part}" for part in ("g", "v", "orig")]
    ]
    if made_of:
        return (
            f"is gone, and computed from {' and '.join(made_of)} now (weight norm, pruning or the "
            "like): take that away before, or observe and consolidate with it"
        )
    if f"{module}.base_layer.{attribute}" in named_parameters(model):
        return (
            "is below an adapter now, for which there is "
            "retain.integrations.peft.LoraPenalty(memory, peft_model)"
        )
    return "is gone"


@dataclass(frozen=True)
class Selection:
    """What `include=` and `exclude=` pick from a model.

    A pattern is a parameter's name, the name of a module that holds it (`"layer4"`), or either with
    the wildcards of a shell (`"blocks.*.attn"`). Without `include`, everything is picked.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(cls, include: Patterns, exclude: Patterns) -> Selection:
        """The selection that a user wrote as a string, some strings, or None.

        Raises:
            InputError: something else than strings.
        """
        picked = None if include is None else patterns_of("include", include)
        return cls(picked, patterns_of("exclude", () if exclude is None else exclude))

    def matching(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What is picked, name -> parameter, frozen ones as well."""
        return {
            name: p for name, (p, aliases) in _with_aliases(model).items() if self.picks(*aliases)
        }

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What is picked and has `requires_grad`, name -> parameter.

        Raises:
            InputError: an `include` pattern that matches nothing.
            ModelError: nothing trainable is picked, or a parameter that cannot be worked on.
        """
        self.check(model)
        picked = {name: p for name, p in self.matching(model).items() if p.requires_grad}
        if not picked:
            every = named_parameters(model)
            frozen = sum(not p.requires_grad for p in every.values())
            raise ModelError(
                f"No trainable parameter to protect: the model has {len(every)} parameters, "
                f"{frozen} of them frozen (requires_grad=False); include={self.include}, "
                f"exclude={self.exclude}."
            )
        _refuse_unusable(picked)
        return picked

    def picks(self, *aliases: str) -> bool:
        """Whether a parameter that goes by these names is picked."""
        return _picks(self, aliases)

    def check(self, model: nn.Module) -> None:
        """See that every pattern matches something; an idle `exclude` is only a warning.

        Raises:
            InputError: an `include` pattern that matches nothing, with what may have been meant.
        """
        if self.include is None and not self.exclude:
            return
        aliases = [alias for _p, names in _with_aliases(model).values() for alias in names]
        idle = [p for p in self.include or () if not any(matches(a, p) for a in aliases)]
        if self.include == ():
            raise InputError("include=() picks nothing; leave it out to protect every parameter.")
        if idle:
            raise InputError(f"include= matches no parameter with {_suggest(idle, aliases)}")
        idle = [p for p in self.exclude if not any(matches(a, p) for a in aliases)]
        if idle and aliases:
            warn(f"exclude= matches no parameter with {_suggest(idle, aliases)}")


def fingerprint(model: nn.Module, selection: Selection) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter that is picked, frozen ones as well."""
    picked = selection.matching(model)
    return {name: tuple(shape) for name, p in picked.items() if (shape := shape_of(p)) is not None}


def address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 if it has none of its own (it wraps others)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a quantised weight of torchao, for one
        return 0


def snapshot(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    """A copy of `tensor`, never a view of it, on `device` in `dtype` (None: as it is)."""
    if is_sharded(tensor):
        return tensor.detach().to(dtype=dtype).clone()
    copy = tensor.detach().to(device=device, dtype=dtype)
    shared = copy.data_ptr() == tensor.data_ptr() and copy.device == tensor.device
    return copy.clone() if shared else copy


@lru_cache(maxsize=1 << 16)  # asked again at every step, for every parameter
def _picks(selection: Selection, aliases: tuple[str, ...]) -> bool:
    include = selection.include
    wanted = include is None or any(matches(a, p) for a in aliases for p in include)
    return wanted and not any(matches(a, p) for a in aliases for p in selection.exclude)


def patterns_of(what: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """What was given as the argument `what`, one string or several.

    Raises:
        InputError: something else than strings.
    """
    if not isinstance(given, (str, Iterable)) or isinstance(given, (bytes, Tensor)):
        raise InputError(
            f"{what}= is a {type(given).__name__}; expected names or patterns of parameters."
        )
    items = (given,) if isinstance(given, str) else tuple(given)
    wrong = sorted({type(item).__name__ for item in items if not isinstance(item, str)})
    if wrong:
        raise InputError(
            f"{what}= holds {', '.join(wrong)}; expected names or patterns of parameters."
        )
    return items


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern picks what has this name."""
    return (
        name == pattern
        or name.startswith(f"{pattern}.")
        or fnmatchcase(name, pattern)
        or fnmatchcase(name, f"{pattern}.*")
    )


def _suggest(idle: Iterable[str], names: list[str]) -> str:
    known = sorted({prefix for name in names for prefix in _prefixes(name)})
    said = []
    for pattern in idle:
        said.append(f"{pattern!r}.{did_you_mean(pattern, known)}")
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"{' '.join(said)} The model has {shown}."


def refuse_several_devices(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """See that the picked parameters are on one device, and that nothing else holds no numbers.

    Frozen weights and buffers may be elsewhere: a forward() may know how to go there. But some
    operations take whatever lies in memory for what is on the meta device, without an error. (Hooks
    may load it, as accelerate's do.)

    Raises:
        ModelError: they are on several; names some on each.
    """
    on: dict[torch.device, list[str]] = {}
    for name, p in parameters.items():
        on.setdefault(p.device, []).append(name)
    home, *others = on
    if others:
        listed = "; ".join(f"on {device} {_some(names)}" for device, names in on.items())
        raise ModelError(f"The parameters are on several devices: {listed}. {_on_one(home)}")
    modules = dict(model.named_modules())
    meta = [
        f"{name} ({tensor.device})"
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_meta
        and not any(_is_hooked(modules[at]) for at in ("", *_prefixes(name)) if at in modules)
    ]
    if meta:
        raise ModelError(
            f"The model is on several devices: its parameters are on {home}; elsewhere are "
            f"{_some(meta)}, where there are no numbers. {_on_one(home)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _on_one(home: torch.device) -> str:
    return (
        f"A model is observed on one device: load or put all of it there, model.to('{home}'), or "
        "observe a copy that is on one, and set memory.observed to what it observed."
    )


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody does something of his own before its forward()."""
    return bool(module._forward_pre_hooks) or "forward" in vars(module)


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _refuse_unusable(picked: dict[str, nn.Parameter]) -> None:
    lazy = [name for name, p in picked.items() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise ModelError(
            f"Parameters without a shape yet: {', '.join(lazy)}. "
            "Run one batch through the model first."
        )
    meta = [name for name, p in picked.items() if p.is_meta and name not in lazy]
    if meta:
        others = [name for name, p in picked.items() if not p.is_meta]
        beside = f" ({others[0]} is on {picked[others[0]].device})" if others else ""
        raise ModelError(
            f"Parameters on the meta device, which hold no numbers: {', '.join(meta[:5])}"
            f"{' …' if len(meta) > 5 else ''}{beside}. Load the model's weights first."
        )
    complex_ = [name for name, p in picked.items() if p.is_complex()]
    if complex_:
        raise ModelError(
            f"Complex parameters: {', '.join(complex_)}. Only real ones can be protected; "
            "leave these out with exclude=…"
        )
