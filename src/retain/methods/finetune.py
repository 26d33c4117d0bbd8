"""FineTune: nothing is protected; the lower bound."""

from __future__ import annotations

from dataclasses import dataclass

from retain.methods.method import Method


@dataclass(frozen=True)
class FineTuneOptions:
    """FineTune has nothing to set."""


class FineTune(Method[FineTuneOptions]):
    """Each task is learned with its own loss alone, from the weights that the last one left."""

    name = "finetune"
    title = "FineTune"
    Options = FineTuneOptions
    stores = "Nothing but the network."
    needs = "nothing"
