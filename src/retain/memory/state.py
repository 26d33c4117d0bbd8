"""Everything that a memory remembers, as one value, and as tensors and a header for a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from retain.memory.running import Running
from retain.memory.terms import Term


@dataclass(frozen=True)
class State:
    """What a memory remembers; replaced as a whole, so that it is never half new.

    Attributes:
        terms: the consolidated quadratics.
        samples: how many samples were consolidated in all.
        tasks: how often it was consolidated.
        running: what was observed since.
    """

    terms: tuple[Term, ...] = ()
    samples: int = 0
    tasks: int = 0
    running: Running | None = None

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, keyed `"kind/name of the parameter"`, and what a header says beside them."""
        tensors: dict[str, Tensor] = {}
        for index, term in enumerate(self.terms):
            tensors |= {f"importance.{index}/{name}": t for name, t in term.importance.items()}
            tensors |= {f"anchor.{index}/{name}": t for name, t in term.anchor.items()}
        running = self.running or Running()
        tensors |= {f"observed/{name}": t for name, t in running.sums.items()}
        header = {
            "samples": self.samples,
            "tasks": self.tasks,
            "term_samples": [term.samples for term in self.terms],
            "observed_samples": running.samples,
            "observed_routes": running.routes,
        }
        return tensors, header

    @classmethod
    def unpack(cls, tensors: Mapping[str, Mapping[str, Tensor]], header: dict[str, Any]) -> State:
        """What `pack` made, given as kind -> name -> tensor."""
        terms = tuple(
            Term(tensors.get(f"importance.{i}", {}), tensors.get(f"anchor.{i}", {}), int(samples))
            for i, samples in enumerate(header["term_samples"])
        )
        running = Running.restored(
            tensors.get("observed", {}), int(header["observed_samples"]), header["observed_routes"]
        )
        return cls(terms, int(header["samples"]), int(header["tasks"]), running)

    def placed(self, devices: Mapping[str, torch.device], kept: torch.device | None) -> State:
        """The same, for the parameters in `devices` and in their order.

        Sums are put beside their parameters; Ω and θ* there too, or on `kept`.
        """

        def at(given: Mapping[str, Tensor], kept: torch.device | None) -> dict[str, Tensor]:
            return {n: given[n].to(kept or device) for n, device in devices.items() if n in given}

        terms = tuple(
            Term(at(t.importance, kept), at(t.anchor, kept), t.samples) for t in self.terms
        )
        running = self.running
        if running is not None:
            running = Running.restored(at(running.sums, None), running.samples, running.routes)
        return replace(self, terms=terms, running=running)
