"""A model with adapters, and what holds each of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from retain.integrations.peft.adapted import Adapted, AdaptedModel, is_packed
from retain.integrations.peft.low_rank import Block
from retain.penalty import Hold, PenaltyChunks


@dataclass(frozen=True)
class HeldModel:
    """A model with adapters, and everything that holds it.

    Attributes:
        found: the model's weights by their base names.
        blocks: base name → the weight as one matrix or several, for those that adapters move.
        free: base name → a trainable parameter that is no adapter's (`modules_to_save`, biases).
        still: base name → a frozen parameter away from θ*; part of the value, of no gradient.
        chunks: which of `free` go together.
    """

    found: AdaptedModel
    blocks: dict[str, tuple[Block, ...]]
    free: dict[str, tuple[nn.Parameter, tuple[Hold, ...]]]
    still: dict[str, tuple[nn.Parameter, tuple[Hold, ...]]]
    chunks: PenaltyChunks = field(default_factory=PenaltyChunks)

    def every_block(self) -> list[Block]:
        """The matrices of all weights."""
        return [block for blocks in self.blocks.values() for block in blocks]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the adapters that move what is held, and those that are held themselves."""
        products = [p for block in self.every_block() for p in block.products]
        factors = [f.parameter for p in products for f in (p.left, p.right)]
        return factors + [p for p, _holds in self.free.values()]


def blocks_of(one: Adapted, holds: tuple[Hold, ...]) -> tuple[Block, ...]:
    """The matrices of a weight that adapters move, and what holds them."""
    base = None if is_at(one.base, holds) else one.base
    return tuple(
        Block(
            tuple(products),
            tuple(Hold(view(hold.importance), view(hold.anchor), hold.unit) for hold in holds),
            None if base is None else view(base.detach()),
        )
        for view, products in zip(one.views, one.products, strict=True)
        if products
    )


class Merged(Mapping[str, Tensor]):
    """Base name → W + ΔW, made when it is asked for and not kept."""

    def __init__(self, held: HeldModel, anchors: Mapping[str, Tensor]) -> None:
        self._held, self._anchors = held, anchors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._held.blocks:
            return self._held.found.plain[name].detach()
        one, blocks = self._held.found.adapted[name], self._held.blocks[name]
        still = blocks[0].base is None  # then it is at θ*, or packed and stands for it
        weight = (self._anchors[name] if still else one.base.detach()).to(blocks[0].dtype).clone()
        for view, products in zip(one.views, one.products, strict=True):
            part = view(weight)
            for product in products:
                part += product.rows(slice(None), blocks[0].dtype)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._anchors)

    def __len__(self) -> int:
        return len(self._anchors)


def is_at(weight: Tensor, holds: tuple[Hold, ...]) -> bool:
    """Whether a frozen weight is at every θ*, to the precision in which that is kept.

    A weight that is packed (quantised) stands for the one that it was made from.
    """
    if is_packed(weight) or weight.shape != holds[0].anchor.shape:
        return True
    stars = [hold.anchor for hold in holds]
    return all(torch.equal(weight.detach().to(star.device, star.dtype), star) for star in stars)
