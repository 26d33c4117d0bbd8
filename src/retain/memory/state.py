"""Everything that a memory remembers, as one value, and as tensors and a header beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from retain.memory.consolidated import Consolidated
from retain.memory.outset import Outset
from retain.memory.running_sums import Running

OBSERVED_AT = "observed_at"  # a few elements of each parameter, as it was at the first sample
Tensors = dict[str, dict[str, Tensor]]  # kind -> name of the parameter -> tensor


@dataclass(frozen=True)
class State:
    """What a memory remembers; replaced as a whole, so that it is never half new.

    Attributes:
        terms: what was consolidated: one Ω and θ*, or one for each task.
        samples: how many samples were consolidated in all.
        tasks: how often it was consolidated.
        running: what was observed since.
        frozen: parameters without Ω that were frozen when it was last consolidated.
        left_out: those that the method itself leaves free, such as heads of the local rule.
    """

    terms: tuple[Consolidated, ...] = ()
    samples: int = 0
    tasks: int = 0
    running: Running | None = None
    frozen: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def pack(self) -> tuple[Tensors, dict[str, Any]]:
        """Tensors, and what a header says beside them; sums are copies, since they grow in place.

        Ω and θ* are never written to, and shared.
        """
        tensors: Tensors = {}
        for index, term in enumerate(self.terms):
            tensors[f"importance.{index}"] = dict(term.importance)
            tensors[f"anchor.{index}"] = dict(term.anchor)
        running = (self.running or Running()).copy()
        tensors["observed"] = running.sums
        if running.outset is not None:
            tensors[OBSERVED_AT] = running.outset.elements
        header = {
            "samples": self.samples,
            "tasks": self.tasks,
            "term_samples": [term.samples for term in self.terms],
            "units": [dict(term.units) for term in self.terms],
            "observed_samples": running.samples,
            "observed_routes": running.routes,
            "squared_norms": [term.squared_norm for term in self.terms],
            "observed_squared_norm": running.squared_norm,
            "precisions": [list(term.precisions) for term in self.terms],
            "observed_precisions": list(running.precisions),
            "frozen": list(self.frozen),
            "left_out": list(self.left_out),
        }
        return tensors, header

    @classmethod
    def unpack(cls, tensors: Mapping[str, Mapping[str, Tensor]], header: dict[str, Any]) -> State:
        """What `pack` made; the sums are copies again."""
        counts = list(header["term_samples"])
        norms = header.get("squared_norms") or [None] * len(counts)
        precisions = header.get("precisions") or [()] * len(counts)
        units = header.get("units") or [{}] * len(counts)  # older files do not have them
        terms = tuple(
            Consolidated(
                tensors.get(f"importance.{i}", {}),
                tensors.get(f"anchor.{i}", {}),
                int(samples),
                norm,
                tuple(said),
                units[i],
            )
            for i, (samples, norm, said) in enumerate(zip(counts, norms, precisions, strict=True))
        )
        running = Running.restored(
            tensors.get("observed", {}),
            int(header["observed_samples"]),
            header["observed_routes"],
            header.get("observed_squared_norm"),
            header.get("observed_precisions", ()),
        ).copy()
        if OBSERVED_AT in tensors:
            running.outset = Outset.restored(tensors[OBSERVED_AT], header["fingerprint"])
        free = (tuple(map(str, header.get(key, ()))) for key in ("frozen", "left_out"))
        return cls(terms, int(header["samples"]), int(header["tasks"]), running, *free)

    def placed(self, devices: Mapping[str, torch.device], kept: torch.device | None) -> State:
        """The same, for the parameters in `devices` and in their order.

        Sums are put beside their parameters; Ω and θ* there too, or on `kept`.
        """

        def at(given: Mapping[str, Tensor], kept: torch.device | None) -> dict[str, Tensor]:
            return {n: given[n].to(kept or device) for n, device in devices.items() if n in given}

        terms = tuple(
            replace(t, importance=at(t.importance, kept), anchor=at(t.anchor, kept))
            for t in self.terms
        )
        running = self.running
        if running is not None:
            running = running.with_sums(at(running.sums, None))
        return replace(self, terms=terms, running=running)


def flattened(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Keyed `"kind/name of the parameter"`, as files hold them."""
    return {f"{kind}/{name}": t for kind, named in tensors.items() for name, t in named.items()}


def grouped(flat: Mapping[str, Tensor]) -> Tensors:
    """What `flattened` was given."""
    tensors: Tensors = {}
    for key, tensor in flat.items():
        kind, _, name = key.partition("/")
        tensors.setdefault(kind, {})[name] = tensor
    return tensors
