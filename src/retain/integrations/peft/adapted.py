"""Which weights PEFT's adapters move, under the names that they had before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import ModelError, StateError
from retain.extras import needs
from retain.integrations.peft.adapter_layer import AdapterLayer, active_in, resting
from retain.integrations.peft.low_rank import Factor, Product, View
from retain.integrations.peft.structure import Structure
from retain.parameters import canonical, is_adapters, unwrapped
from retain.sharding import any_sharded, is_sharded

ROOT = "base_model.model."  # what PeftModel puts in front of every name
BEFORE = (  # what to do about weights that are quantised
    "Observe the model as it was before, save the memory, and read it here: "
    "LoraPenalty(retain.MAS(peft_model), peft_model).load(path)"
)
INSERTED = frozenset({"base_layer", "original_module"})  # what adapters put into the middle


@dataclass(eq=False)
class Adapted:
    """A weight that adapters move.

    Attributes:
        base: the weight itself, which may be packed (quantised).
        shape: of the weight, as its importance has it.
        views: the weight as one matrix, or as several (experts).
        products: what the active adapters add to each of them.
        layers: the names of the layers that move it.
    """

    base: Tensor
    shape: torch.Size
    views: tuple[View, ...]
    products: list[list[Product]]
    layers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AdaptedModel:
    """What is in a model with adapters: base name → the weight, moved by adapters or as it is."""

    root: nn.Module
    adapted: Mapping[str, Adapted]
    plain: Mapping[str, nn.Parameter]
    layers: tuple[AdapterLayer, ...]
    standing_in: Mapping[int, str | None]  # id of a `modules_to_save` → the copy that is active
    resting: tuple[object, ...]  # what `resting` gave of the plain ones
    structure: Structure
    adapting: tuple[tuple[str, nn.Module], ...]  # everything in it that belongs to adapters

    @property
    def is_current(self) -> bool:
        """Whether the model still has these weights and adapters there, with these factors."""
        return (
            self.structure.is_whole
            and all(layer.is_current for layer in self.layers)
            and self.resting == tuple(map(resting, self.plain.values()))
        )

    @cached_property
    def sharded(self) -> tuple[str, ...]:
        """The adapters' layers that are sharded over the ranks."""
        return tuple(one.name for one in self.layers if any_sharded(one.module.parameters()))

    def refuse_sharded(self) -> None:
        """Nothing, if every rank has all of the adapters.

        Raises:
            StateError: they are sharded over the ranks: a row of B A needs all of A.
        """
        if self.sharded:
            raise StateError(
                f"Adapters are sharded over the ranks (fully_shard), and LoraPenalty needs all of "
                f"them on each: {', '.join(self.sharded)}. Train with DistributedDataParallel, or "
                "hold the weights themselves: merge the adapters and use memory.attach(optimizer)."
            )

    def refuse_changed(self) -> None:
        """Nothing, if what moves the weights is what was found.

        Raises:
            StateError: an adapter or a copy was put in, taken out, merged or switched.
        """
        whole = self.structure.is_whole  # then the layers are there, and no others
        for layer in self.layers:
            layer.refuse_changed(None if whole else self.root)
        modules = self.adapting if whole else _adapting(self.root.named_modules())
        known = {id(layer.module) for layer in self.layers}
        new = [
            name
            for name, module in modules
            if _is_tuner(module) and id(module) not in known and _moves(module)
        ]
        new += [
            name
            for name, module, copy in _copies(modules)
            if self.standing_in.get(id(module)) != copy
        ]
        if new:
            raise StateError(
                f"What is trained in {', '.join(map(repr, new))} was added or activated after this "
                "LoraPenalty was made, and nothing would hold it. Make a new LoraPenalty after "
                "add_adapter(…) and set_adapter(…), and remove() the handle of this one."
            )


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is kept in a format (quantised), and no plain floating numbers."""
    plain = type(weight) in (Tensor, nn.Parameter) or is_sharded(weight)
    return not plain or not weight.is_floating_point() or weight.numel() == 0


def packed_below(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """The adapters' layers whose own weights are packed, and into what."""
    lora = needs("peft.tuners.lora.layer", "trainers").LoraLayer
    found = []
    for name, module in modules:
        if isinstance(module, lora) and not isinstance(module, nn.MultiheadAttention):
            layer: Any = module
            base = layer.get_base_layer()
            weight = _attribute(base, getattr(layer, "parameter_name", "weight"))
            if is_packed(weight):
                kind = type(weight if weight.numel() else base).__name__
                found.append(f"{name} ({kind})")
    return found


def root_of(model: nn.Module) -> nn.Module:
    """The user's own network, in which the adapters sit.

    Raises:
        InputError: not a module.
    """
    inner = unwrapped(model)
    root: nn.Module = (
        inner.get_base_model() if isinstance(inner, needs("peft").PeftModel) else inner
    )
    return root


def base_name(name: str) -> str:
    """The name that a parameter had before there were adapters."""
    parts = canonical(name).removeprefix(ROOT).split(".")
    kept = []
    inside = iter(parts)
    for part in inside:
        if part == "modules_to_save":
            next(inside, None)  # the adapter's name
        elif part not in INSERTED:
            kept.append(part)
    return ".".join(kept)


def find(model: nn.Module) -> AdaptedModel:
    """Every weight of `model` by its base name, and which adapters move it.

    Raises:
        ModelError: no LoRA layer, or layers of another kind; names all of them.
    """
    root = root_of(model)
    modules = dict(root.named_modules())
    layers = {name: module for name, module in modules.items() if _is_tuner(module)}
    _refuse_other_kinds(root, layers, modules)
    names = _names(root, modules)
    adapted: dict[str, Adapted] = {}
    for name, module in layers.items():
        for attribute, products, shape, views in _moved(module):
            base = _attribute(module.get_base_layer(), attribute)
            known = names.get(id(base), base_name(f"{name}.{attribute}"))
            one = adapted.setdefault(known, Adapted(base, shape, views, [[] for _ in views]))
            one.layers.append(name)
            for have, more in zip(one.products, products, strict=True):
                have.extend(more)
    plain = {
        names[id(p)]: p for p in root.parameters() if id(p) in names and names[id(p)] not in adapted
    }
    found = tuple(AdapterLayer.of(name, module) for name, module in layers.items())
    adapting = _adapting(modules.items())
    copies = {id(module): copy for _name, module, copy in _copies(adapting)}
    still = tuple(map(resting, plain.values()))
    return AdaptedModel(root, adapted, plain, found, copies, still, Structure(root), adapting)


def _adapting(modules: Iterable[tuple[str, nn.Module]]) -> tuple[tuple[str, nn.Module], ...]:
    """Those of the modules that belong to adapters: their layers, and what they have copies of."""
    return tuple((name, one) for name, one in modules if _is_tuner(one) or _has_copies(one))


def _is_tuner(module: nn.Module) -> bool:
    return isinstance(module, needs("peft.tuners.tuners_utils", "trainers").BaseTunerLayer)


def _has_copies(module: nn.Module) -> bool:
    """Whether an adapter may put a copy in its place (PEFT's `modules_to_save`)."""
    copies = getattr(module, "modules_to_save", None)
    return isinstance(copies, nn.ModuleDict) and hasattr(module, "original_module")


def disabled_in(layers: Iterable[AdapterLayer]) -> tuple[bool, ...]:
    """Which layers add nothing now, whatever is active in them."""
    return tuple(bool(layer.module.disable_adapters) for layer in layers)


def _moves(module: Any) -> bool:
    """Whether one of a layer's adapters, of whatever kind, is active in it."""
    have = {name for kind in module.adapter_layer_names for name in getattr(module, kind, ())}
    return bool(have & set(module.active_adapters))


def _names(root: nn.Module, modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """Id of a parameter → its base name, for all that the model computes with but adapters' own."""
    idle = tuple(f"{prefix}." for prefix in _idle(modules))
    names: dict[int, str] = {}
    for raw, p in root.named_parameters(remove_duplicate=False):
        if not is_adapters(raw) and not raw.startswith(idle):
            names.setdefault(id(p), base_name(raw))
    return names


def _idle(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Names of modules that another copy stands in for (PEFT's `modules_to_save`)."""
    for name, module, active in _copies(modules.items()):
        if active is not None:
            yield f"{name}.original_module"
        yield from (
            f"{name}.modules_to_save.{other}" for other in module.modules_to_save if other != active
        )


def _copies(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Any, str | None]]:
    """Modules of which adapters have copies: name, module, and which copy is active."""
    of_copies: list[tuple[str, Any]] = [(n, one) for n, one in modules if _has_copies(one)]
    for name, module in of_copies:
        active = () if module.disable_adapters else module.active_adapters
        yield name, module, next((one for one in active if one in module.modules_to_save), None)


def _refuse_other_kinds(
    root: nn.Module, layers: Mapping[str, nn.Module], modules: Mapping[str, nn.Module]
) -> None:
    wrong = [f"{name} ({why})" for name, m in layers.items() if (why := _why_not(m))]
    tokens = needs("peft.utils.other", "trainers").TrainableTokensWrapper
    wrong += [f"{n} (trainable_token_indices)" for n, m in modules.items() if isinstance(m, tokens)]
    if wrong:
        raise ModelError(
            f"LoraPenalty does not know how these change weights: {', '.join(wrong)}. It knows "
            "LoRA and rsLoRA on linear, embedding and convolutional layers and on parameters, and "
            "modules_to_save. Use one of these for the weights to be protected."
        )
    if not layers:
        raise ModelError(
            f"There is no LoRA layer in the {type(root).__name__}. Give the model that "
            "peft.get_peft_model returned; without adapters, memory.attach(optimizer) is enough."
        )


def _why_not(module: Any) -> str | None:
    """Why what this layer does is not s L R; None if it is."""
    lora = needs("peft.tuners.lora.layer", "trainers")
    kind = type(module).__name__
    if not isinstance(module, lora.LoraLayer):
        return f"{type(module).__module__.split('.')[-2]}.{kind}"
    if isinstance(module, lora.MultiheadAttention):
        return "MultiheadAttention, to whose out_proj PEFT adds the product twice"
    for variant in module.lora_variant.values():
        return type(variant).__name__.replace("Dora", "DoRA ")
    factors = [*module.lora_A.values(), *module.lora_B.values()]
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if not all(isinstance(one, (nn.Linear, *convolutions)) for one in factors):
        return f"{type(module).__module__.split('.')[-2]}.{kind}"
    base = module.get_base_layer()
    if isinstance(base, convolutions) and base.groups > 1:
        return f"a convolution in {base.groups} groups, into which PEFT cannot merge either"
    return None


def _attribute(base: nn.Module, name: str) -> Tensor:
    found = getattr(base, name, None)
    if not isinstance(found, Tensor):
        return torch.empty(0)  # kept under other names: packed into some format
    return found


Moved = tuple[str, list[list[Product]], torch.Size, tuple[View, ...]]


def _moved(module: Any) -> Iterator[Moved]:
    """What a layer's active adapters add, and to which attribute of its base layer."""
    lora = needs("peft.tuners.lora.layer", "trainers")
    active = active_in(module)
    if not active:
        return
    if isinstance(module, lora.ParamWrapper):
        yield _experts(module, active)
        return
    products = [_product(module, adapter) for adapter in active]
    first = products[0]
    p, q = len(first.left.matrix), first.right.matrix.shape[1]
    base = _attribute(module.get_base_layer(), "weight")
    shape = base.shape if base.ndim > 2 else torch.Size((p, q))
    yield "weight", [products], shape, (_flat,)
    biased = [adapter for adapter in active if module.lora_bias.get(adapter)]
    if biased:
        bias = [_bias(module, adapter) for adapter in biased]
        yield "bias", [bias], torch.Size((len(bias[0].left.matrix),)), (_column,)


def _product(module: Any, adapter: str) -> Product:
    scale = _scale(module, adapter)
    if adapter in module.lora_embedding_A:
        a, b = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
        turned = True  # an embedding [tokens, d] is moved by (B A)ᵀ
    else:
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        turned = getattr(module, "fan_in_fan_out", False)  # Conv1D keeps its weight as [in, out]
    product = Product(Factor(b, _flat), Factor(a, _flat), scale)
    return product.transposed if turned else product


def _bias(module: Any, adapter: str) -> Product:
    """A bias [p] as s b · 1."""
    bias = module.lora_B[adapter].bias
    one = nn.Parameter(torch.ones(1, 1, dtype=bias.dtype, device=bias.device), requires_grad=False)
    return Product(Factor(bias, _column), Factor(one, _flat), _scale(module, adapter))


def _scale(module: Any, adapter: str) -> float:
    """The factor of an adapter; 0 inside of `peft_model.disable_adapter()`: it adds nothing."""
    return 0.0 if module.disable_adapters else float(module.scaling[adapter])


def _experts(module: Any, active: tuple[str, ...]) -> Moved:
    """A parameter with a weight [p, q] for every expert, or just one, moved by its own product."""
    count = module.num_experts
    shape = module.get_param().shape
    if count == 1:
        plain = [_product(module, adapter) for adapter in active]
        return module.parameter_name, [plain], shape, (_flat,)
    swapped = module._did_swap_in_out_features

    def of_expert(adapter: str, e: int) -> Product:
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        # A [experts · r, in], B [out, r · experts]
        left = Factor(b, lambda t: t.reshape(len(t), -1, count)[:, :, e])
        right = Factor(a, lambda t: t.reshape(count, -1, t.shape[-1])[e])
        product = Product(left, right, _scale(module, adapter))
        return product if swapped else product.transposed

    products = [[of_expert(adapter, e) for adapter in active] for e in range(count)]
    return module.parameter_name, products, shape, tuple(_expert(e) for e in range(count))


def _expert(e: int) -> View:
    return lambda tensor: tensor[e]


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 else tensor.reshape(len(tensor), -1)


def _column(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, 1)
