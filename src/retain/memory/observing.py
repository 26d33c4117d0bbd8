"""From data to Ω: what is observed, and when it is consolidated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from retain import arguments
from retain.borrowed import borrowed
from retain.errors import InputError, ModelError, StateError
from retain.importance import Importance
from retain.memory import alarms
from retain.memory.consolidated import Consolidated, Merge, merged
from retain.memory.coverage import listed
from retain.memory.estimator import Estimator, Made
from retain.memory.footprint import warn_if_short
from retain.memory.fresh import warn_of_fresh
from retain.memory.given_data import batches_in, blaming, progress_of
from retain.memory.mishaps import short_of_memory
from retain.memory.outset import Outset
from retain.memory.ranks import of_all_ranks, own_samples, several
from retain.memory.remembered import Remembered
from retain.memory.running_sums import Running
from retain.memory.state import State
from retain.memory.unheld import warn_of_kept, warn_of_zeros
from retain.parameters import refuse_several_devices
from retain.samples.outputs import OutputPicker, first_tensor
from retain.saying import warn
from retain.sharding import any_sharded, sharded_like


class Observing(Remembered):
    """The part of a memory that looks at data."""

    def observe(self, data: Any, *, max_samples: int | None = None, progress: bool = True) -> Self:
        """This memory, with the samples of `data` added to what it has observed; no label is used.

        The model is only borrowed: modes, buffers, gradients and random state are as before, also
        when something fails, and then everything before the failing batch is kept.

        Args:
            data: an iterable of batches (a DataLoader, a list, a generator), or one tensor. A batch
                is a tensor, a tuple or list (the first element is the input), or a dict of keyword
                arguments.
            max_samples: stop after this many.
            progress: show a bar, if there is a terminal.

        Raises:
            InputError: no data, a batch that cannot be used, or an output that cannot.
            NonFiniteError: NaN or infinity in outputs or gradients; says in which batch.
            OutOfMemoryError: one sample does not fit, or what stands beside the batches.
            ModelError: the samples of a batch influence each other, or parameters are on several
                devices.
            StateError: the model changed since the first sample; call `consolidate()` before that.

        Examples:
            >>> retain.MAS(model).observe(loader, max_samples=20).observed.samples
            20
        """
        arguments.optional(arguments.whole, "max_samples", max_samples, least=1)
        arguments.flag("progress", progress)
        with short_of_memory(lambda: self._state.running):
            return self._observed_too(data, max_samples, progress)

    def _observed_too(self, data: Any, max_samples: int | None, progress: bool) -> Self:
        """This memory, with the samples of `data` added."""
        if self._output_is_lost:
            raise StateError(
                "This memory was saved with output=…, a function that a file cannot hold. "
                "Give it again: retain.load(path, model, output=…)."
            )
        parameters = self.selection.trainable(self.model)
        self._guard.look()
        if any_sharded(parameters.values()):
            raise StateError(
                "The model is sharded over the ranks (fully_shard): no rank has all the weights, "
                "so gradients of single samples cannot be computed. Observe before "
                "fully_shard(model), or on a copy that is not sharded, and set memory.observed."
            )
        refuse_several_devices(self.model, parameters)
        if self._state.running is None:
            warn_if_short(parameters, self.storage)
        running = self._state.running or Running()
        self._sets_out(running, parameters)
        limits = [n for n in (max_samples, own_samples(data)) if n is not None]
        wanted = running.samples + min(limits, default=math.inf)
        if wanted == running.samples:  # all that the loader has for this rank is repeated
            return self
        number = 0
        whole = isinstance(data, Tensor) and self._reader.samples_of is not None
        batches = batches_in([data] if whole else data, batch_dim=self._reader.batch_dim)
        pick = self.output or first_tensor
        device = next(iter(parameters.values())).device
        with (
            borrowed(self.model),
            _entered(self.output),
            progress_of(batches, wanted=progress) as advance,
        ):
            estimator = self._estimator(parameters)
            for number, raw in enumerate(batches, 1):
                with blaming(number, lambda: running.samples, self.model, raw):
                    batch = self._reader.read(raw, self.model, pick, device)
                    if running.samples + batch.samples > wanted:
                        batch = batch.take(0, int(wanted) - running.samples)
                    sums = estimator(batch)
                    running.add(sums, batch.samples, estimator.squared_norms)
                    running.note(estimator.routes, estimator.precision)
                self._state = replace(self._state, running=running)
                advance()
                if running.samples >= wanted:
                    break
        if number == 0 and several():  # a share that is empty
            return self
        if number == 0:
            raise InputError(
                "The data holds no batch. (A generator can be gone through only once: make a new "
                "one, or pass a list.)"
            )
        warn_of_zeros(running, self._zeros)
        warn_of_kept(self.model, running, self._zeros)
        return self

    @property
    def observed(self) -> Importance:
        """What was observed since the last `consolidate()`; empty if nothing was.

        It can be set to an importance that was made elsewhere: pooled from several processes,
        devices or days, or loaded from a file.

        Examples:
            >>> memory = retain.MAS(model).observe(loader)
            >>> other = retain.MAS(model).observe(new_data).observed  # on another machine, say
            >>> memory.observed = retain.Importance.pool([memory.observed, other])
            >>> memory.consolidate().importance.samples
            64
        """
        running = self._state.running
        return running.mean(self.selection.matching(self.model)) if running else Importance({}, 0)

    @observed.setter
    def observed(self, given: Importance) -> None:
        running = Running.of(given, self.selection.matching(self.model))
        self._state = replace(self._state, running=running)

    def consolidate(self, merge: Merge = "sum") -> Self:
        """This memory, with what was observed added to Ω and θ* set to the weights as they are now.

        In one of several processes (torch.distributed), what all ranks observed is added up, and
        all end with the same Ω: call it on every rank. A rank may have observed nothing.

        Args:
            merge: "sum" (the paper: Ω ← Ω + Ω_new), "pool" (the mean over all samples), or a decay
                γ in [0, 1) (Ω ← γΩ + Ω_new).

        Raises:
            StateError: nothing was observed; or the ranks disagree about the model or the memory,
                or one of them did not come.
            InputError: another `merge`.
            ModelError: the model no longer has the shapes that were observed or consolidated.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> memory.observe(new_inputs).consolidate().tasks  # Ω of both, added up
            2
        """
        observed = self._of_all_ranks(merge) if several() and self.shared else self._all_observed()
        if not observed:
            raise StateError(self._nothing_to_consolidate())
        self._guard.look()
        if self._state.running is not None:
            parameters = self.selection.matching(self.model)
            self._state.running.refuse_changed(parameters)
            self._say_moved_on(self._state.running, parameters)
        self._holding()
        warn_of_fresh(self.model, observed)
        terms = self._joined(observed, merge)
        held = {name for term in terms for name in term.importance}
        free = {n: p for n, p in self.selection.matching(self.model).items() if n not in held}
        self._state = State(
            terms=terms,
            samples=self._state.samples + observed.samples,
            tasks=self._state.tasks + 1,
            frozen=tuple(name for name, p in free.items() if not p.requires_grad),
            left_out=tuple(n for n, p in free.items() if p.requires_grad and self.selective),
        )
        self._routes.update(observed.routes)
        self._made = None  # its buffers are as large as the weights
        self._guard.anchored()
        return self

    # ---- what the four differ in ----

    def _make_estimator(self, parameters: Mapping[str, nn.Parameter]) -> Estimator:
        raise NotImplementedError

    def _differentiated(self) -> dict[str, object]:
        """By the names of their settings, what decides of what the gradients are."""
        return {}

    def _all_observed(self) -> Importance:
        """`observed`, as long as nothing is added, with each Ω made when it is asked for."""
        running = self._state.running
        return running.means(self.selection.matching(self.model)) if running else Importance({}, 0)

    def _nothing_to_consolidate(self) -> str:
        return "Nothing was observed since the last consolidate(). Call observe(data) first."

    def _joined(self, observed: Importance, merge: Merge) -> tuple[Consolidated, ...]:
        """The terms after `observed` has joined them: one, unless a method keeps several."""
        old = self._state.terms[0] if self._state.terms else None
        means = merged(old, self._as_sharded(observed), merge)
        anchor = old.anchor if old else {}
        return (self.storage.term(means, self.selection.matching(self.model), anchor),)

    # ---- inside ----

    def _sets_out(self, running: Running, parameters: Mapping[str, nn.Parameter]) -> None:
        """Before samples are added: know the weights of the first, or say if these are others.

        Raises:
            ModelError: the parameters are not those that were observed before.
        """
        running.refuse_changed(parameters)
        if running.outset is None or not running.samples:
            running.outset = Outset(parameters)
            return
        joined = running.outset.joined(parameters)
        if joined:
            raise ModelError(
                f"The model changed since it was observed: {listed(joined)} not there, frozen or "
                f"left out for the first {running.samples} samples, so that there is no mean over "
                "all of them. Call consolidate() first, or observe all data with a new memory."
            )
        self._say_moved_on(running, parameters)

    def _say_moved_on(self, running: Running, parameters: Mapping[str, nn.Parameter]) -> None:
        """Warn, once, if the weights are not those of the first sample any more."""
        outset = running.outset
        if outset is None or outset.said:
            return
        others = outset.others(parameters)
        if others:
            outset.said = True
            warn(alarms.moved_on(self, others, running.samples))

    def _of_all_ranks(self, merge: Merge) -> Importance:
        def here() -> Importance:
            if self._state.running is not None:
                self._state.running.refuse_changed(parameters)
            self._holding()
            return self.observed

        parameters = self.selection.matching(self.model)
        settings = {"method": type(self).__name__, "strength": self.strength, "merge": merge}
        more = {"tasks": self.tasks, "dtype": self.storage.settings()["dtype"]}
        return of_all_ranks(here, parameters, settings | more)

    def _estimator(self, parameters: Mapping[str, nn.Parameter]) -> Estimator:
        """The estimator for these parameters, which remembers what it learned about the model.

        Raises:
            StateError: samples were observed by something else than what is differentiated now.
        """
        ids, asked = {name: id(p) for name, p in parameters.items()}, self._differentiated()
        made, running = self._made, self._state.running
        if made is not None and made.differentiated != asked:
            if running is not None and running.samples:
                changed = [name for name in asked if made.differentiated[name] != asked[name]]
                raise StateError(
                    f"{' and '.join(changed)} was changed after {running.samples} samples had been "
                    "observed with another: Ω would be a mixture. Call consolidate() before that, "
                    "or observe all data with a new memory."
                )
            made = None
        if made is None or made.parameters != ids:
            made = self._made = Made(ids, asked, self._make_estimator(parameters))
        return made.estimator

    def _as_sharded(self, observed: Importance) -> Importance:
        parameters = self.selection.matching(self.model)
        if not any_sharded(parameters.values()):
            return observed
        means = {name: sharded_like(omega, parameters[name]) for name, omega in observed.items()}
        return Importance(
            means,
            observed.samples,
            observed.routes,
            observed.squared_norm,
            observed.precisions,
        )


def _entered(output: OutputPicker | None) -> AbstractContextManager[Any]:
    """An `output=` that is a context too is entered for as long as the model is observed."""
    return output if isinstance(output, AbstractContextManager) else nullcontext()
