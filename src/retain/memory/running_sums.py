"""Sums over samples that are never half added."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from retain.errors import InputError, ModelError
from retain.importance import Importance
from retain.lazily import MadeWhenAsked
from retain.memory.outset import Outset
from retain.parameters import summed_in
from retain.per_sample import WITHOUT_GRADIENT


class Running:
    """Σ over samples per parameter, and how many samples there were: both or neither move.

    Kept in single precision, in double for double parameters, whatever else is asked for.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.alive: set[str] = set()  # parameters whose sum is known to be more than zero
        self.outset: Outset | None = None  # the weights at the first sample, if they are known
        self.routes: dict[str, str] = {}
        self.precisions: tuple[str, ...] = ()
        with torch.inference_mode(False):
            self._count = torch.zeros((), dtype=torch.int64)
            self._norms = torch.zeros((), dtype=torch.float64)  # Σ ‖F(xₖ)‖²; NaN if not known

    @property
    def samples(self) -> int:
        """How many samples the sums are over."""
        return int(self._count)

    @property
    def squared_norm(self) -> float | None:
        """The mean of ‖F(x)‖² over the samples; None if nobody told it for all of them."""
        total = float(self._norms)
        return total / self.samples if self.samples and math.isfinite(total) else None

    def add(
        self, sums: Mapping[str, Tensor], samples: int, squared_norms: Tensor | None = None
    ) -> None:
        """Add the sums over `samples` more samples, and that of their ‖F(x)‖², if known."""
        # Serving may run in inference mode, whose tensors could not be added to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for name, given in sums.items():
                if name not in self.sums:
                    self.sums[name] = torch.zeros_like(given, dtype=summed_in(given.dtype))
            if squared_norms is None:
                squared_norms = torch.full((), torch.nan)
            if self._norms.device != squared_norms.device and not self.samples:
                there = squared_norms.device
                single = there.type == "mps"  # has no double precision
                self._norms = self._norms.to(there, torch.float32 if single else torch.float64)
            norms = squared_norms.to(self._norms)
            totals = [*(self.sums[name] for name in sums), self._count, self._norms]
            more = [*sums.values(), torch.tensor(samples, dtype=self._count.dtype), norms]
            # One call, which an interrupt cannot cut in two: sums and count never disagree.
            torch._foreach_add_(totals, more)

    def note(self, routes: Mapping[str, str], precision: str | None) -> None:
        """Take down how the last batch was computed.

        That a parameter had no gradient in it says nothing of the batches before.
        """
        known = {name for name, route in self.routes.items() if route not in WITHOUT_GRADIENT}
        for name, route in routes.items():
            if name not in known or route not in WITHOUT_GRADIENT:
                self.routes[name] = route
        if precision is not None and precision not in self.precisions:
            self.precisions += (precision,)

    def refuse_changed(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Nothing, if the sums still fit the parameters.

        Raises:
            ModelError: parameters that are gone or have another shape; names all.
        """
        wrong = [
            f"{name} was {tuple(total.shape)} and is "
            + (
                str(tuple(parameters[name].shape))
                if name in parameters
                else "gone, frozen or left out"
            )
            for name, total in self.sums.items()
            if name not in parameters or parameters[name].shape != total.shape
        ]
        if wrong:
            raise ModelError(f"The model changed since it was observed: {'; '.join(wrong)}.")

    def mean(self, order: Iterable[str] = ()) -> Importance:
        """Ω = 1/N Σₖ, so far; names in this order, and then the others."""
        found = self.means(order)
        return Importance(
            dict(found), found.samples, found.routes, found.squared_norm, found.precisions
        )

    def means(self, order: Iterable[str] = ()) -> Importance:
        """The same as long as nothing is added, each Ω made when it is asked for."""
        n = self.samples
        if n == 0:
            return Importance({}, 0)
        names = [*(name for name in order if name in self.sums), *self.sums]
        means = MadeWhenAsked(names, lambda name: self.sums[name] / n)
        return Importance(means, n, self.routes, self.squared_norm, self.precisions)

    @classmethod
    def of(cls, importance: Importance, parameters: Mapping[str, nn.Parameter]) -> Running:
        """The sums behind an importance that was made elsewhere, beside the parameters.

        Raises:
            InputError: not an importance, without samples, not of these parameters, or with numbers
                in it that no importance can have.
        """
        if not isinstance(importance, Importance) or importance.samples < 1:
            raise InputError(f"observed was set to {importance!r}; expected Importance of samples.")
        wrong = [
            f"{name} {tuple(omega.shape)}"
            for name, omega in importance.items()
            if name not in parameters or parameters[name].shape != omega.shape
        ]
        if wrong:
            raise InputError(
                f"Not importance of this memory's parameters: {', '.join(wrong)}. Expected "
                + ", ".join(f"{name} {tuple(p.shape)}" for name, p in parameters.items())
            )
        bad = [n for n, omega in importance.items() if not ((omega >= 0) & omega.isfinite()).all()]
        if bad:
            raise InputError(f"Negative numbers, NaN or infinity in the importance of {bad}.")
        n = importance.samples
        sums = {name: omega.to(parameters[name].device) * n for name, omega in importance.items()}
        running = cls()
        norm = importance.squared_norm
        running.add(sums, n, None if norm is None else torch.tensor(norm * n, dtype=torch.float64))
        running.routes, running.precisions = dict(importance.routes), importance.precisions
        return running

    def copy(self) -> Running:
        """The same, with sums of its own."""
        return self.with_sums({name: total.clone() for name, total in self.sums.items()})

    def with_sums(self, sums: Mapping[str, Tensor]) -> Running:
        """The same samples, with these sums: copies, or moved, or grown."""
        twin = Running.restored(sums, self.samples, self.routes, self.squared_norm, self.precisions)
        twin.outset = self.outset
        return twin

    @classmethod
    def restored(
        cls,
        sums: Mapping[str, Tensor],
        samples: int,
        routes: Mapping[str, str],
        squared_norm: float | None,
        precisions: Iterable[str],
    ) -> Running:
        """The sums as they were saved."""
        running = cls()
        running.sums, running.routes = dict(sums), dict(routes)
        running.precisions = tuple(precisions)
        running._count.fill_(samples)
        if samples:
            running._norms.fill_(math.nan if squared_norm is None else squared_norm * samples)
        return running
