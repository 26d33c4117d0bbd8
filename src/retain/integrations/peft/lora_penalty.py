"""What an adapter does to the weights below it, held by the importance of those weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain import arguments, files
from retain.drift import Drift
from retain.eagerly import eagerly
from retain.errors import InputError, ModelError, NonFiniteError, StateError
from retain.integrations.peft.adapted import (
    BEFORE,
    AdaptedModel,
    base_name,
    disabled_in,
    find,
    packed_below,
)
from retain.integrations.peft.held_model import HeldModel, Merged, blocks_of, is_at
from retain.integrations.peft.lora_attachment import LoraAttachment
from retain.integrations.peft.low_rank import ProductPenalty
from retain.memory.attachment import Attachment
from retain.memory.body import Memory
from retain.memory.consolidated import Consolidated
from retain.memory.handle import Handle, attached
from retain.memory.optimizers import FoundOptimizer, optimizers_in, refuse_form, refuse_unheld
from retain.memory.plain_data import remembering, split
from retain.memory.state import flattened, grouped
from retain.parameters import is_adapters
from retain.penalty import Hold, Number, Penalty, value
from retain.saying import warn


class LoraPenalty:
    """λ Σ Ω (W + ΔW − θ*)² for a model whose weights W are moved by LoRA's ΔW = s B A.

    As long as W is θ*, that is λ Σ Ω ∘ (ΔW)². It is `memory.penalty()` of the merged model, with
    gradients to A and B, and never a ΔW in memory.

    Args:
        memory: made on the base model, before the adapter was put into it or after.
        peft_model: what `peft.get_peft_model` returned, or any module with LoRA layers in it.
        dtype: keep a copy of Ω in this type, such as `torch.bfloat16`; by default the memory's own.

    Raises:
        ModelError: layers that are not LoRA's, Ω of another model, adapters on weights without Ω;
            names all of them.
        StateError: something was observed but never consolidated, or the model is sharded
            (`fully_shard`).

    Examples:
        >>> from peft import LoraConfig, get_peft_model
        >>> from retain.integrations.peft import LoraPenalty
        >>> memory = retain.MAS(model).observe(loader).consolidate()  # before the adapter
        >>> peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["0", "2"]))
        >>> penalty = LoraPenalty(memory, peft_model)
        >>> trained = [p for p in peft_model.parameters() if p.requires_grad]
        >>> handle = penalty.attach(torch.optim.AdamW(trained), form="adaptive")
        >>> penalty.penalty().item(), penalty.drift().relative  # B is still 0
        (0.0, 0.0)
        >>> penalty.save("memory.safetensors"); penalty.load("memory.safetensors")
        >>> penalty.load_state_dict(penalty.state_dict())
        >>> type(penalty.held()).__name__
        'HeldModel'
    """

    def __init__(
        self, memory: Memory, peft_model: nn.Module, *, dtype: torch.dtype | None = None
    ) -> None:
        if not isinstance(memory, Memory):
            raise InputError(
                f"LoraPenalty got a {type(memory).__name__} as memory; expected retain.MAS(model) "
                "or another memory."
            )
        arguments.instance(
            "peft_model", peft_model, nn.Module, "what peft.get_peft_model(model, …) returns"
        )
        arguments.floating("dtype", dtype)
        if dtype is not None and dtype.itemsize == 1:
            raise InputError(
                f"dtype={dtype} cannot hold Ω here; expected a floating type of 16 bits or more. "
                "In 8 bits it is kept by the memory itself: retain.MAS(…, "
                "dtype=torch.float8_e5m2)."
            )
        self.memory = memory
        self.model = peft_model
        self.dtype = dtype
        first = find(peft_model)
        self._layers = first.layers
        # by which layers are disabled: inside of disable_adapter() the model is another one
        self._found: dict[tuple[bool, ...], AdaptedModel] = {disabled_in(first.layers): first}
        self._made: tuple[tuple[Consolidated, ...], object, HeldModel] | None = None
        self._attachments: WeakSet[Attachment] = WeakSet()
        self._gone: list[nn.Parameter] = []  # what was replaced by others
        self._in_losses = 0  # how often the gradient of `penalty()` was asked for
        self._warned = self._warned_twice = False
        self.held()

    @eagerly
    def penalty(self) -> Tensor:
        """λ Σ Ω (W + ΔW − θ*)², a scalar with gradients to the adapters, to be added to a loss.

        Zero, with one warning, before the memory was consolidated. Inside of
        `peft_model.disable_adapter()` adapters add nothing, and it is that of the base weights.

        Raises:
            StateError: an adapter was merged, unloaded or switched since this was made, or
                something was observed but never consolidated.

        Examples:
            >>> from retain.integrations.peft import LoraPenalty
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> penalty = LoraPenalty(memory, peft_model)
            >>> loss = criterion(peft_model(x), y) + penalty.penalty()
            >>> loss.backward()
        """
        held, weight = self._held_now(), self.memory._weight()
        held.found.refuse_changed()
        parts = []
        if held.blocks:
            parts.append(ProductPenalty.of(held.every_block(), weight, self._entered_a_loss))
        if held.free:
            free = list(held.free.values())
            given = [holds for _p, holds in free], weight, self._entered_a_loss, held.chunks
            parts.append(Penalty.apply(*given, *(p for p, _holds in free)))
        with torch.no_grad():
            parts += [weight * value(p.detach(), hold) for p, hold in held.still.values()]
        if not parts:
            p = next(iter(held.found.root.parameters()))
            return torch.zeros((), device=p.device, requires_grad=True)
        first = parts[0]
        return torch.stack([part.to(first.device, first.dtype) for part in parts]).sum()

    def attach(self, optimizer: Any, *, form: str = "gradient") -> Handle:
        """A handle; every `optimizer.step()` is protected as long as it is not removed.

        "gradient" adds the gradients of `penalty()` for the length of a step, as `memory.attach`
        does. "proximal" follows the step by the exact minimiser of ½‖B − B₀‖² + ηλ Σ Ω (…)² in B,
        and then of the same in A: small equations for every row of B and every column of A, stable
        for every λ. "adaptive" is that with the optimizer's own step size for each of their
        elements. `modules_to_save` and trained biases are held as by `memory.attach`.

        Args:
            optimizer: as for `memory.attach`; it holds the adapters' parameters.
            form: "gradient", "proximal" or "adaptive".

        Raises:
            InputError: not an optimizer, or one that holds none of the adapters that are held, or a
                form that cannot work with it.
            StateError: attached already in another form; in a step: an adapter was merged, unloaded
                or switched, or something was observed and never consolidated.

        Examples:
            >>> from retain.integrations.peft import LoraPenalty
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> penalty = LoraPenalty(memory, peft_model)
            >>> trained = [p for p in peft_model.parameters() if p.requires_grad]
            >>> optimizer = torch.optim.AdamW(trained)
            >>> with penalty.attach(optimizer, form="adaptive"):
            ...     for x, y in new_data:
            ...         optimizer.zero_grad()
            ...         criterion(peft_model(x), y).backward()
            ...         optimizer.step()  # protected
        """
        found = optimizers_in(optimizer)
        for one in found:
            refuse_form(one.optimizer, form, self.memory.forms)
        held = self.held()
        if self.memory.tasks:
            refuse_unheld([one.optimizer for one in found], held.parameters)

        def made(one: FoundOptimizer) -> Attachment:
            new = LoraAttachment(
                one,
                form,
                blocks=lambda: self.held().every_block(),
                held=lambda: self.held().free,
                weight=self.memory._weight,
                version=partial(self._version, one.optimizer),
            )
            self._attachments.add(new)
            return new

        return attached(found, form, self._attachments, made)

    @torch.no_grad()
    def drift(self) -> Drift:
        """How much the output is expected to have changed: `memory.drift()` of the merged model.

        Raises:
            StateError: nothing was consolidated, or an adapter was merged, unloaded or switched.

        Examples:
            >>> from retain.integrations.peft import LoraPenalty
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> penalty = LoraPenalty(memory, peft_model)
            >>> penalty.drift().relative  # B is still 0
            0.0
        """
        held = self.held()
        held.found.refuse_changed()
        if not self.memory.tasks:
            raise StateError("Nothing was consolidated: there is no Ω and no θ* to compare with.")
        holds = self._by_base_name(held.found)[0]
        omegas = {
            name: torch.stack([hold.whole for hold in several]).sum(0)
            for name, several in holds.items()
        }
        anchors = {name: several[-1].anchor for name, several in holds.items()}
        norm = self.memory.importance.squared_norm
        return Drift.of(omegas, anchors, Merged(held, anchors), norm)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to `path`, under the names of the base model: `retain.load` reads it.

        Raises:
            FileError: it cannot be written; what was there is untouched.

        Examples:
            >>> from retain.integrations.peft import LoraPenalty
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> penalty = LoraPenalty(memory, peft_model)
            >>> penalty.save("memory.safetensors")
            >>> memory = retain.load("memory.safetensors", base)  # on a base model without adapters
        """
        header = self.state_dict()
        tensors = header.pop("tensors")
        files.write(path, "memory", flattened(tensors), header)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Let the memory be what `save` wrote to `path`, also before the adapter was there.

        Raises:
            FileError: it cannot be read.
            ModelError: it does not match the model; names all.

        Examples:
            >>> from retain.integrations.peft import LoraPenalty
            >>> memory = retain.MAS(base).observe(loader).consolidate()  # before the adapter
            >>> memory.save("memory.safetensors")
            >>> penalty = LoraPenalty(retain.MAS(peft_model), peft_model)  # in another process
            >>> penalty.load("memory.safetensors")
            >>> penalty.memory.tasks
            1
        """
        flat, header = files.read(path, "memory")
        self.load_state_dict({**header, "tensors": grouped(flat)})

    def state_dict(self) -> dict[str, Any]:
        """`memory.state_dict()`, under the names of the base model.

        Examples:
            >>> from retain.integrations.peft import LoraPenalty
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> penalty = LoraPenalty(memory, peft_model)
            >>> torch.save({"memory": penalty.state_dict()}, "last.pt")
            >>> sorted(penalty.state_dict()["tensors"]["anchor.0"])
            ['0.bias', '0.weight', '2.bias', '2.weight']
        """
        state = self.memory.state_dict()
        found = self.held().found
        names = [*found.plain, *found.adapted]
        shapes = {name: list(_shape(found, name) or ()) for name in names}
        state["fingerprint"] = {n: s for n, s in shapes.items() if self.memory.selection.picks(n)}
        state["tensors"] = {
            kind: {base_name(name): t for name, t in named.items()}
            for kind, named in state["tensors"].items()
        }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the memory be what `state_dict()` returned.

        Raises:
            InputError: it is no state of this kind of memory.
            ModelError: it does not match the model; names all; nothing is changed then.

        Examples:
            >>> from retain.integrations.peft import LoraPenalty
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> penalty = LoraPenalty(memory, peft_model)
            >>> torch.save({"memory": penalty.state_dict()}, "last.pt")
            >>> penalty.load_state_dict(torch.load("last.pt")["memory"])
        """
        tensors, header = split(state, type(self.memory))
        found = self.held().found
        devices = {name: p.device for name, p in found.plain.items()}
        devices |= {name: one.base.device for name, one in found.adapted.items()}
        with remembering(self.memory, tensors, header, devices):
            self.held()

    def held(self) -> HeldModel:
        """What holds what, as the memory and the model are now.

        Examples:
            >>> from retain.integrations.peft import LoraPenalty
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> penalty = LoraPenalty(memory, peft_model)
            >>> sorted(penalty.held().blocks)  # the weights that adapters move
            ['0.weight', '2.weight']
        """
        self.memory._refuse_unconsolidated()
        terms, chosen = self.memory.terms, self.memory.selection
        disabled = disabled_in(self._layers)
        if disabled not in self._found:
            self._found[disabled] = find(self.model)
        found = self._found[disabled]
        if not found.is_current:
            found = self._found_anew(found)
        found.refuse_sharded()
        known = self._made
        if (
            known is None
            or known[0] is not terms
            or known[1] != chosen
            or known[2].found is not found
        ):
            self._made = known = terms, chosen, self._hold(found)
        return known[2]

    def _held_now(self) -> HeldModel:
        """As `held`, where something is to be protected by it: it is told once if nothing is."""
        held = self.held()
        if not self.memory.terms and not self._warned:
            self._warned = True
            warn(
                f"Nothing is protected yet: {type(self.memory).__name__} has no importance before "
                "consolidate(), and the penalty is 0."
            )
        return held

    def _found_anew(self, before: AdaptedModel) -> AdaptedModel:
        """The model as it is now that other parameters or factors are in the adapters.

        Raises:
            StateError: an adapter was put in, taken out, merged or switched.
        """
        before.refuse_changed()
        found = find(self.model)
        self._layers, self._found = found.layers, {disabled_in(found.layers): found}
        trained = set(map(id, found.root.parameters()))
        known = self._made[2].parameters if self._made is not None else []
        self._gone += [p for p in known if id(p) not in trained]
        return found

    def _hold(self, found: AdaptedModel) -> HeldModel:
        holds, wrong = self._by_base_name(found)
        bare = [
            f"{name} (of {', '.join(one.layers)})"
            for name, one in found.adapted.items()
            if name not in holds and self.memory.selection.picks(name)
        ]
        packed = packed_below(found.root.named_modules()) if bare else []
        _refuse(wrong, bare if self.memory.terms else [], packed, self.memory)
        moved = [
            name for name, one in found.adapted.items() if name in holds and one.base.requires_grad
        ]
        if moved:
            raise ModelError(
                f"Both a weight and its adapter would be trained: {', '.join(moved)}. Freeze the "
                "base weight with requires_grad_(False)."
            )
        blocks = {n: blocks_of(found.adapted[n], holds[n]) for n in found.adapted if n in holds}
        plain = {n: (p, holds[n]) for n, p in found.plain.items() if n in holds}
        free = {name: both for name, both in plain.items() if both[0].requires_grad}
        still = {n: (p, h) for n, (p, h) in plain.items() if n not in free and not is_at(p, h)}
        return HeldModel(found, blocks, free, still)

    def _by_base_name(self, found: AdaptedModel) -> tuple[dict[str, tuple[Hold, ...]], list[str]]:
        """Base name → (Ω, θ*) of every term, and what does not fit the model."""
        holds: dict[str, tuple[Hold, ...]] = {}
        wrong = []
        for term in self.memory.terms:
            for own, omega in term.importance.items():
                name = base_name(own)
                if not self.memory.selection.picks(own) or is_adapters(own):
                    continue
                shape = _shape(found, name)
                if shape == omega.shape:
                    hold = Hold(omega, term.anchor[own], term.units.get(own, 1.0))
                    if self.dtype is not None:
                        kept = _cast(own, term.omega(own), self.dtype)
                        hold = Hold(kept, term.anchor[own])
                    holds[name] = (*holds.get(name, ()), hold)
                else:
                    now = "is not there" if shape is None else f"is {tuple(shape)}"
                    wrong.append(f"{own} was {tuple(omega.shape)} and {now}")
        return holds, wrong

    def _version(self, optimizer: Optimizer) -> tuple[object, ...]:
        """What holds by now, asked before every step.

        Raises:
            StateError: the model is another one by now, or the optimizer steps what it had before.
        """
        held = self._held_now()
        held.found.refuse_changed()
        gone = set(map(id, self._gone))
        if gone and any(id(p) in gone for g in optimizer.param_groups for p in g["params"]):
            raise StateError(
                "Parameters of adapters were replaced by others (an adapter of the same name, or "
                f"load_state_dict(assign=True)), but this {type(optimizer).__name__} steps the old "
                "ones. Make a new optimizer, and attach it."
            )
        return (held,)

    def _entered_a_loss(self, weight: Number) -> None:
        """The gradient of `penalty()` was asked for, times `weight`."""
        self._in_losses += 1
        if any(one.attached for one in self._attachments) and not self._warned_twice:
            self._warned_twice = True
            warn(
                "penalty() is in a loss, but the steps of the attached optimizer add it, too, so "
                "it counts twice. Use one or the other."
            )


def _refuse(
    wrong: Sequence[str], bare: Sequence[str], packed: Sequence[str], memory: Memory
) -> None:
    if wrong:
        raise ModelError(
            f"The memory is not of this model: {'; '.join(dict.fromkeys(wrong))}. Give the memory "
            "of the base model, or leave these out with memory.exclude = […]."
        )
    if bare:
        adapters = [n for term in memory.terms for n in term.importance if is_adapters(n)]
        why = (
            f" The memory has importance of the adapter itself ({adapters[0]}, …), not of what it "
            "moves."
            if adapters
            else ""
        )
        way = (
            f"Weights are quantised, and have no gradients: {', '.join(packed)}. {BEFORE}"
            if packed
            else "Observe the base model with these weights trainable, before the adapter is put "
            "into it or inside retain.integrations.peft.base_weights(peft_model)"
        )
        raise ModelError(
            f"Adapters on weights without importance: {', '.join(bare)}.{why} {way}; or leave them "
            "out with memory.exclude = […]."
        )


def _cast(name: str, omega: Tensor, dtype: torch.dtype) -> Tensor:
    kept = omega.to(dtype)
    if not kept.isfinite().all():
        raise NonFiniteError(
            f"The importance of {name} does not fit into {dtype}. Use dtype=torch.bfloat16, which "
            "has the range of single precision."
        )
    return kept


def _shape(found: AdaptedModel, name: str) -> torch.Size | None:
    if name in found.adapted:
        return found.adapted[name].shape
    return found.plain[name].shape if name in found.plain else None
