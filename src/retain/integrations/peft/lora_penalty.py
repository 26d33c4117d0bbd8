"""What an adapter does to the weights below it, held by the importance of those weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retain.errors import InputError, ModelError, NonFiniteError
from retain.integrations.peft.adapted import Adapted, Found, base_name, find, is_adapters
from retain.integrations.peft.products import Block, ProductPenalty, value
from retain.memory.body import Memory
from retain.memory.state import State
from retain.penalty import Hold, Penalty
from retain.penalty import value as plain_value


@dataclass(frozen=True)
class Held:
    """A model with adapters, and everything that holds it.

    Attributes:
        found: the model's weights by their base names.
        blocks: base name → the weight as one matrix or several, for those that adapters move.
        free: base name → a trainable parameter that is no adapter's (`modules_to_save`, biases).
        still: base name → a frozen parameter away from θ*; part of the value, of no gradient.
    """

    found: Found
    blocks: dict[str, tuple[Block, ...]]
    free: dict[str, tuple[nn.Parameter, tuple[Hold, ...]]]
    still: dict[str, tuple[nn.Parameter, tuple[Hold, ...]]]

    def every_block(self) -> list[Block]:
        """The matrices of all weights."""
        return [block for blocks in self.blocks.values() for block in blocks]


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
        StateError: something was observed but never consolidated.
    """

    def __init__(
        self, memory: Memory, peft_model: nn.Module, *, dtype: torch.dtype | None = None
    ) -> None:
        if not isinstance(memory, Memory):
            raise InputError(
                f"LoraPenalty got a {type(memory).__name__} as memory; expected retain.MAS(model) "
                "or one of its like."
            )
        if dtype is not None and not dtype.is_floating_point:
            raise InputError(f"dtype={dtype} cannot hold Ω; expected a floating type.")
        self.memory = memory
        self.model = peft_model
        self.dtype = dtype
        self._made: tuple[State, object, Held] | None = None
        self._warned = False
        self.held()

    def penalty(self) -> Tensor:
        """λ Σ Ω (W + ΔW − θ*)², a scalar with gradients to the adapters, to be added to a loss.

        Zero, with one warning, before the memory was consolidated.

        Raises:
            StateError: an adapter was merged, unloaded or switched since this was made, or
                something was observed but never consolidated.
        """
        held, weight = self.held(), self.memory._weight()
        self._refuse_changed(held)
        parts = []
        if held.blocks:
            parts.append(ProductPenalty.of(held.every_block(), weight, self._entered_a_loss))
        if held.free:
            free = list(held.free.values())
            every = [holds for _p, holds in free]
            parts.append(
                Penalty.apply(every, weight, self._entered_a_loss, *(p for p, _holds in free))
            )
        with torch.no_grad():
            parts += [weight * plain_value(p.detach(), hold) for p, hold in held.still.values()]
        if not parts:
            p = next(iter(held.found.root.parameters()))
            return torch.zeros((), device=p.device, requires_grad=True)
        first = parts[0]
        return torch.stack([part.to(first.device, first.dtype) for part in parts]).sum()

    @torch.no_grad()
    def drift(self) -> dict[str, float]:
        """Base name → ‖W + ΔW − θ*‖₂, how far each held weight is from where Ω holds it."""
        held = self.held()
        self._refuse_changed(held)
        far = {
            name: sum(float(value(_unweighted(block))) for block in blocks) ** 0.5
            for name, blocks in held.blocks.items()
        }
        for name, (p, holds) in {**held.free, **held.still}.items():
            star = holds[-1].anchor
            far[name] = float((p.detach() - star.to(p)).norm())
        return far

    def held(self) -> Held:
        """What holds what, as the memory and the model are now."""
        self.memory._refuse_unconsolidated()
        state, chosen = self.memory._state, self.memory.selection
        if self._made is None or self._made[0] is not state or self._made[1] != chosen:
            found = self._made[2].found if self._made else find(self.model)
            self._made = state, chosen, self._hold(found)
        if not state.terms and not self._warned:
            self._warned = True
            warnings.warn(
                f"Nothing is protected yet: {type(self.memory).__name__} has no importance before "
                "consolidate(), and the penalty is 0.",
                stacklevel=3,
            )
        return self._made[2]

    def _hold(self, found: Found) -> Held:
        holds, wrong = self._by_base_name(found)
        bare = [
            f"{name} (of {', '.join(one.layers)})"
            for name, one in found.adapted.items()
            if name not in holds and self.memory.selection.picks(name)
        ]
        _refuse(wrong, bare if self.memory._state.terms else [], self.memory)
        moved = [
            name for name, one in found.adapted.items() if name in holds and one.base.requires_grad
        ]
        if moved:
            raise ModelError(
                f"Both a weight and its adapter would be trained: {', '.join(moved)}. Freeze the "
                "base weight with requires_grad_(False)."
            )
        blocks = {n: _blocks(found.adapted[n], holds[n]) for n in found.adapted if n in holds}
        plain = {n: (p, holds[n]) for n, p in found.plain.items() if n in holds}
        free = {name: both for name, both in plain.items() if both[0].requires_grad}
        still = {n: (p, h) for n, (p, h) in plain.items() if n not in free and not _at(p, h)}
        return Held(found, blocks, free, still)

    def _by_base_name(self, found: Found) -> tuple[dict[str, tuple[Hold, ...]], list[str]]:
        """Base name → (Ω, θ*) of every term, and what does not fit the model."""
        holds: dict[str, tuple[Hold, ...]] = {}
        wrong = []
        for term in self.memory._state.terms:
            for own, omega in term.importance.items():
                name = base_name(own)
                if not self.memory.selection.picks(own) or is_adapters(own):
                    continue
                shape = _shape(found, name)
                if shape == omega.shape:
                    kept = _cast(own, omega, self.dtype)
                    holds[name] = (*holds.get(name, ()), Hold(kept, term.anchor[own]))
                else:
                    now = "is not there" if shape is None else f"is {tuple(shape)}"
                    wrong.append(f"{own} was {tuple(omega.shape)} and {now}")
        return holds, wrong

    def _refuse_changed(self, held: Held) -> None:
        for layer in held.found.layers:
            layer.refuse_changed(held.found.root)

    def _entered_a_loss(self, weight: float) -> None:
        """The gradient of `penalty()` was asked for."""


def _refuse(wrong: Sequence[str], bare: Sequence[str], memory: Memory) -> None:
    if wrong:
        raise ModelError(
            f"The memory is not of this model: {'; '.join(dict.fromkeys(wrong))}. Give the memory "
            "of the base model, or leave these out with memory.exclude = […]."
        )
    if bare:
        adapters = [n for term in memory._state.terms for n in term.importance if is_adapters(n)]
        why = (
            f" The memory has importance of the adapter itself ({adapters[0]}, …), not of what it "
            "moves."
            if adapters
            else ""
        )
        raise ModelError(
            f"Adapters on weights without importance: {', '.join(bare)}.{why} Observe the base "
            "model with these weights trainable, before the adapter is put into it or inside "
            "retain.integrations.peft.base_weights(peft_model); or leave them out with "
            "memory.exclude = […]."
        )


def _blocks(one: Adapted, holds: tuple[Hold, ...]) -> tuple[Block, ...]:
    base = None if _at(one.base, holds) else one.base
    return tuple(
        Block(
            tuple(products),
            tuple(Hold(view(hold.importance), view(hold.anchor)) for hold in holds),
            None if base is None else view(base.detach()),
        )
        for view, products in zip(one.views, one.products, strict=True)
        if products
    )


def _unweighted(block: Block) -> Block:
    """The block with Ω = 1, held by its last anchor."""
    star = block.holds[-1].anchor
    ones = torch.ones((), dtype=block.dtype, device=block.device).expand(star.shape)
    return Block(block.products, (Hold(ones, star),), block.base)


def _at(weight: Tensor, holds: tuple[Hold, ...]) -> bool:
    """Whether a frozen weight is at every θ*, to the precision in which that is kept.

    A weight that is packed (quantised) stands for the one that it was made from.
    """
    shape = holds[0].anchor.shape
    if weight.shape != shape or not weight.is_floating_point():
        return True
    stars = [hold.anchor for hold in holds]
    return all(torch.equal(weight.detach().to(star.device, star.dtype), star) for star in stars)


def _cast(name: str, omega: Tensor, dtype: torch.dtype | None) -> Tensor:
    kept = omega.to(dtype)
    if not kept.isfinite().all():
        raise NonFiniteError(
            f"The importance of {name} does not fit into {dtype}. Use dtype=torch.bfloat16, which "
            "has the range of single precision."
        )
    return kept


def _shape(found: Found, name: str) -> torch.Size | None:
    if name in found.adapted:
        return found.adapted[name].shape
    return found.plain[name].shape if name in found.plain else None
