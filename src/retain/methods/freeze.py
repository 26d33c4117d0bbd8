"""Freezing: the first blocks of the network are not trained any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from retain.errors import ConfigError
from retain.methods.method import Method
from retain.ranges import Count
from retain.tasks import TaskSequence

IN_A_ROW = (nn.Sequential, nn.ModuleList)  # subclasses have a meaning of their own


@dataclass(frozen=True)
class FreezeOptions:
    """Defaults of freezing.

    Attributes:
        blocks: how many of the backbone's first blocks are frozen from the second task on; None is
            all of them, so that only the new head learns.
    """

    blocks: Count | None = None


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of a network in the order in which they were made, each with parameters.

    What only holds others one after another (a Sequential or ModuleList, or a module around a
    single one) is opened; what is left is what the architecture repeats: a residual block, a layer
    of a transformer, a convolution of a plain network.
    """
    children = [child for child in backbone.children() if _has_parameters(child)]
    if not children:
        return [backbone] if _has_parameters(backbone) else []
    in_a_row = type(backbone) in IN_A_ROW
    return [block for child in children for block in _opened(child, in_a_row, len(children) == 1)]


def _opened(module: nn.Module, in_a_row: bool, alone: bool) -> list[nn.Module]:
    """The blocks in a module that stands in a row with others, alone, or beside others."""
    lists = any(type(child) in IN_A_ROW for child in module.children())
    holds = type(module) in IN_A_ROW or (not in_a_row and (alone or lists))
    return blocks_of(module) if holds else [module]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


class Freeze(Method[FreezeOptions]):
    """Fine-tuning of the last blocks alone: the first ones stay as the first task left them."""

    name = "freeze"
    title = "Freeze"
    Options = FreezeOptions
    stores = "Nothing but the network."
    needs = "nothing"
    knob = "blocks"
    holds_weights = True

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Freeze the first blocks, from the second task on.

        Raises:
            ConfigError: the network has fewer blocks.
        """
        if index == 0:
            return
        for p in self._frozen():
            p.requires_grad_(False)

    def _frozen(self) -> Iterator[nn.Parameter]:
        backbone, number = self.network.backbone, self.options.blocks
        if number is None:
            yield from backbone.parameters()
            return
        blocks = blocks_of(backbone)
        if number > len(blocks):
            raise ConfigError(
                f"freeze.blocks is {number}, but the network has {len(blocks)} blocks: "
                + ", ".join(type(block).__name__ for block in blocks)
                + "."
            )
        for block in blocks[:number]:
            yield from block.parameters()
