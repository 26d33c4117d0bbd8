"""Which of the weights that are trained are held, which are free, and whether that is meant."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from retain.memory.state import State
from retain.parameters import Selection, named_parameters, shape_of

NAMED = 8  # names in one message; more are counted


@dataclass(frozen=True)
class Coverage:
    """What is held of the weights that are trained.

    Attributes:
        held: how many of the weights that are trained have importance.
        trained: how many are trained in all.
        unheld: those that have none although nobody left them out, name -> why.
    """

    held: int
    trained: int
    unheld: Mapping[str, str]

    @property
    def share(self) -> float:
        """The held ones among the trained, between 0 and 1."""
        return self.held / self.trained if self.trained else 1.0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        selection: Selection,
        state: State,
        inside: Collection[int] | None = None,
    ) -> Coverage:
        """The coverage of what is trained: what is in an optimizer, or all that could be.

        Args:
            model: the network.
            selection: what is to be protected at all.
            state: what is remembered.
            inside: ids of the parameters of the optimizer; None for all.
        """
        names = {name for term in state.terms for name in term.importance}
        picked = selection.matching(model)
        trained = {
            name: p
            for name, p in named_parameters(model).items()
            if p.requires_grad and shape_of(p) is not None and (inside is None or id(p) in inside)
        }
        unheld = {
            name: _why(name, state)
            for name in trained
            if name in picked and name not in names and name not in state.left_out
        }
        held = sum(p.numel() for name, p in trained.items() if name in names and name in picked)
        return cls(held, sum(p.numel() for p in trained.values()), unheld)


def _why(name: str, state: State) -> str:
    return "frozen when it was observed" if name in state.frozen else "not there when consolidated"


def listed(names: Collection[str]) -> str:
    """Some names for a message, and how many more there are."""
    shown = list(names)[:NAMED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def patterns(names: Collection[str]) -> list[str]:
    """The modules of these parameters, or they themselves, as `exclude=` would take them."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
