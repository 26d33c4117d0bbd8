"""What the user holds: Ω, θ*, and the verbs that make and use them."""

from __future__ import annotations

import math
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from typing_extensions import Self

from retain import arguments, files
from retain.borrowed import borrowed
from retain.drift import Drift
from retain.errors import InputError, ModelError, StateError
from retain.importance import Importance
from retain.memory.attachment import Attachment, Follower, Handle, Held, attached
from retain.memory.consolidated import Consolidated, Merge, holds, merged, sharded
from retain.memory.estimator import Estimator
from retain.memory.footprint import Footprint, warn_if_short
from retain.memory.forecast import Loss, after_one_step, weights_in
from retain.memory.fresh import warn_of_fresh
from retain.memory.given_data import batches_in, blaming, progress_of
from retain.memory.growth import hold_grown
from retain.memory.guard import Guard
from retain.memory.held_and_free import Check, checked
from retain.memory.monitor import Log, Monitor
from retain.memory.optimizers import Found, optimizers_in, refuse_form, refuse_unheld
from retain.memory.plain_data import described, restored, split
from retain.memory.ranks import of_all_ranks, own_samples, several
from retain.memory.running_sums import Running
from retain.memory.state import State, Tensors, flattened
from retain.memory.storage import Storage, folder_of
from retain.memory.unheld import warn_of_zeros
from retain.parameters import Patterns, Selection, unwrapped
from retain.penalty import Number, Penalty
from retain.samples.outputs import OutputPicker, first_tensor
from retain.samples.reader import Reader
from retain.sharding import any_sharded, is_sharded, local, over_shards, sharded_like

NOT_COPIED = ("_attachments", "_made", "_guard")  # handles hold optimizers, buffers are large


class Memory:
    """What MAS, LocalMAS, EWC and SI have in common: all but where Ω comes from.

    Args:
        model: the network, of any kind; nothing is put on it.
        strength: λ, how hard the weights are held.
        include: names or patterns of the parameters to protect; all by default.
        exclude: names or patterns of parameters to leave free.
        dtype: in which Ω and θ* are kept; by default Ω in single precision, θ* as the weights are.
        device: where Ω and θ* are kept; by default with the weights.
        offload: a folder on a fast disk, where Ω and θ* are kept and read at each step.

    Raises:
        InputError: a strength that is negative or not finite, or patterns that match nothing.
        ModelError: a model without trainable parameters.
    """

    shared: ClassVar[bool] = True  # whether ranks observe each their own share
    forms: ClassVar[tuple[str, ...]] = ("gradient", "proximal", "adaptive")
    coefficient: ClassVar[float] = 1.0  # of λ Σ Ω (θ − θ*)²

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 1.0,
        include: Patterns = None,
        exclude: Patterns = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        offload: str | os.PathLike[str] | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self.strength = strength
        self.selection = Selection.of(include, exclude)
        self.selection.trainable(self.model)
        self.storage = Storage(
            arguments.floating("dtype", dtype),
            arguments.place("device", device),
            folder_of(offload),
        )
        self._reader = Reader()
        self._state = State()
        self._routes: dict[str, str] = {}
        self._made: tuple[dict[str, int], Estimator] | None = None
        self._watch()
        self._warned = False
        self._warned_twice = False
        self._zeros: set[str] = set()  # parameters that a warning has named
        self._in_losses = 0  # how often the gradient of `penalty()` was asked for
        self._output_is_lost = False

    @property
    def strength(self) -> float:
        """λ, how hard the weights are held; may be set at any time."""
        return self._strength

    @strength.setter
    def strength(self, given: float) -> None:
        self._strength = arguments.number("strength", given, least=0)

    @property
    def include(self) -> tuple[str, ...] | None:
        """Names or patterns of the parameters to protect; None for all."""
        return self.selection.include

    @property
    def exclude(self) -> tuple[str, ...]:
        """Names or patterns of parameters to leave free; may be set at any time."""
        return self.selection.exclude

    @exclude.setter
    def exclude(self, given: Patterns) -> None:
        self.selection = Selection.of(self.include, given)

    @property
    def tasks(self) -> int:
        """How often it was consolidated."""
        return self._state.tasks

    # ---- from data to Ω ----

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
            ModelError: the samples of a batch influence each other.
            StateError: the model changed since the first sample; call `consolidate()` before that.

        Examples:
            >>> retain.MAS(model).observe(loader, max_samples=20).observed.samples
            20
        """
        arguments.optional(arguments.whole, "max_samples", max_samples, least=1)
        arguments.flag("progress", progress)
        if self._output_is_lost:
            raise StateError(
                "This memory was saved with output=…, a function that a file cannot hold. "
                "Give it again: retain.load(path, model, output=…)."
            )
        parameters = self.selection.trainable(self.model)
        self._guard.look()
        if any_sharded(parameters.values()):
            raise StateError(
                "The model is sharded over the ranks (fully_shard): none of them has all weights, "
                "and gradients of single samples cannot be had. Observe before fully_shard(model), "
                "or on a copy that is not sharded, and set memory.observed."
            )
        if self._state.running is None:
            warn_if_short(parameters, self.storage)
        running = self._state.running or Running()
        running.refuse_changed(parameters)
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
        return self

    @property
    def observed(self) -> Importance:
        """What was observed since the last `consolidate()`; empty if nothing was.

        It can be set to an importance that was made elsewhere: pooled from several processes,
        devices or days, or loaded from a file.
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
            self._state.running.refuse_changed(self.selection.matching(self.model))
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

    @property
    def importance(self) -> Importance:
        """The consolidated Ω, over all tasks; empty before the first `consolidate()`."""
        terms = [
            Importance(
                term.omegas(),
                term.samples,
                squared_norm=term.squared_norm,
                precisions=term.precisions,
            )
            for term in self._state.terms
        ]
        nothing = Importance({}, 0, squared_norm=0.0)
        total = sum(terms[1:], start=terms[0]) if terms else nothing
        total.samples, total.routes = self._state.samples, dict(self._routes)
        return total

    # ---- from Ω to protection ----

    def penalty(self) -> Tensor:
        """λ Σ Ω (θ − θ*)², a scalar with gradient, to be added to a loss.

        Zero before anything was observed, with one warning. Not needed after `attach`, which would
        count it a second time.

        Raises:
            StateError: something was observed but never consolidated; or it is called inside of a
                transform of torch.func.
            ModelError: parameters with importance that are gone or have another shape.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> loss = criterion(model(x), y) + memory.penalty()
            >>> loss.backward()
        """
        self._guard.look(closely=False)
        self._guard.asked()
        held = self._held()
        if not held:
            p = next(iter(self.model.parameters()))
            return torch.zeros((), dtype=p.dtype, device=p.device, requires_grad=True)
        totals = []
        for shards in (False, True):  # what a rank has all of, and what it has a shard of
            some = [(p, several) for p, several in held.values() if is_sharded(p) is shards]
            if some:
                given = [several for _p, several in some], self._weight(), self._entered_a_loss
                with _not_transformed():
                    total: Tensor = Penalty.apply(*given, *(local(p) for p, _several in some))
                totals.append(over_shards(total, some[0][0]))
        return totals[0] if len(totals) == 1 else totals[0] + totals[1].to(totals[0])

    def attach(
        self,
        optimizer: object,
        *,
        form: str = "gradient",
        log: Log | None = None,
        stop_when_drift_exceeds: float | None = None,
        every: int = 50,
    ) -> Handle:
        """A handle; every `optimizer.step()` is protected as long as it is not removed.

        "gradient" adds 2λΩ(θ − θ*) to the gradients for the length of a step: once, however they
        were accumulated, after clipping (so only the task's gradient is clipped) and after a
        GradScaler has unscaled them. Afterwards the gradients are the user's own again, also when
        the step is broken off. A weight without a gradient is pulled back if it is away from θ*,
        and left alone if it is not. With `step(closure)` the penalty is in every gradient and every
        loss that the closure gives.

        "proximal" moves the weights after the step, θ ← (θ + 2ηλΩθ*) / (1 + 2ηλΩ) with η the
        learning rate of the group: stable for every λ.

        "adaptive" is the same with the step size that the optimizer really takes for each weight
        in place of η: divided by √v̂ + ε for Adam and its like, multiplied by 1/(1 − μ) for
        momentum. Training then comes to rest where the gradients of loss and penalty cancel, so
        that the same λ means the same with every optimizer. Stable for every λ, too.

        Args:
            optimizer: any `torch.optim.Optimizer` that holds some of the protected parameters;
                what a trainer wraps around one (Accelerate, Lightning, anything with an
                `.optimizer`); or several, in a list or as the values of a mapping. A wrapper and
                what it wraps are attached once.
            form: "gradient", "proximal" or "adaptive".
            log: is called with a dict of plain numbers after every 50th step (or `every`): "step",
                "drift" (`drift().relative`), "change", "penalty" (with λ) and "distance".
            stop_when_drift_exceeds: a limit of `drift().relative`, looked at as often: beyond it,
                `optimizer.step()` raises a DriftError when the step is done.
            every: how many steps lie between two looks at the drift; each reads Ω, θ* and the
                weights once.

        Returns:
            A handle with `remove()`, which is also a context manager.

        Raises:
            InputError: not an optimizer, or one that holds none of the protected parameters, or
                a form that there is not or that cannot work with it.
            StateError: it is attached already, in another form.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> with memory.attach(optimizer, form="adaptive"):
            ...     for x, y in new_data:
            ...         optimizer.zero_grad()
            ...         criterion(model(x), y).backward()
            ...         optimizer.step()  # protected
        """
        arguments.function("log", log)
        arguments.whole("every", every, least=1)
        limit = arguments.optional(
            arguments.number, "stop_when_drift_exceeds", stop_when_drift_exceeds, least=0
        )
        found = optimizers_in(optimizer)
        for one in found:
            refuse_form(one.optimizer, form, self.forms)
        self._guard.look()
        held = [p for p, _ in self._holding().values()]
        protected = held or self.selection.trainable(self.model).values()
        refuse_unheld([one.optimizer for one in found], protected)

        def made(one: Found) -> Attachment:
            new = Attachment(
                one,
                form,
                held=self._held_in_step,
                weight=self._weight,
                version=self._version,
                follower=self._follower(),
                released=self._guard.removed,
            )
            self._attachments.add(new)
            return new

        watcher = None
        if log is not None or limit is not None:
            watcher = Monitor(
                lambda: self.drift() if self.tasks else None,
                self._weight,
                found[0].optimizer,
                log=log,
                limit=limit,
                every=every,
            )
        handle = attached(found, form, self._attachments, made, watcher)
        self._guard.attached(handle.attachments)
        return handle

    # ---- how much is it, or will it be, forgotten ----

    def drift(self) -> Drift:
        """How much the output is expected to have changed since θ*, in all and by parameter.

        From Ω, θ* and the weights alone: no data are looked at.

        Raises:
            StateError: nothing was consolidated.
            ModelError: parameters with importance that are gone or have another shape.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> memory.drift().relative  # nothing has moved
            0.0
        """
        return self.forecast(self.model)

    def forecast(self, other: Any, *, loss: Loss | None = None, lr: float = 1e-3) -> Drift:
        """How much the output is to change with other weights, before anybody uses them.

        Args:
            other: a model or a state dict with the weights; or a loader of new data, of which one
                step of gradient descent is taken, on all of it, from the weights as they are now.
            loss: for a loader: from the model and a batch to a scalar; by default what the model
                itself returns as `.loss`, or the cross-entropy of its output with the labels.
            lr: for a loader: how long the step is.

        Raises:
            StateError: nothing was consolidated.
            InputError: weights of another model (every name is listed), or data without labels.
            ModelError: parameters with importance that are gone or have another shape.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> near, far = (memory.forecast(new_data, lr=lr).change for lr in (0.01, 0.1))
            >>> 0 < near < far
            True
        """
        held = {name: p for name, (p, _) in self._holding().items()}
        arguments.function("loss", loss)
        arguments.number("lr", lr, above=0)
        if not held:
            raise StateError("Nothing was consolidated: there is no Ω and no θ* to compare with.")
        anchor, importance = self.anchor, self.importance
        weights = weights_in(other, held)
        if weights is not None and loss is not None:
            raise InputError("A forecast for weights looks at no data: leave loss out.")
        if weights is None:
            weights = after_one_step(self.model, other, held, loss=loss, lr=lr)
        omegas = {name: importance[name] for name in held}
        return Drift.of(omegas, anchor, weights, importance.squared_norm)

    # ---- to look at, to carry and to keep ----

    @property
    def terms(self) -> tuple[Consolidated, ...]:
        """What was consolidated: one Ω and θ*, or for EWC one of each task."""
        return self._state.terms

    @property
    def anchor(self) -> dict[str, Tensor]:
        """θ* by name, where the weights are held; of EWC, which keeps one per task, the latest."""
        return {name: star for term in self._state.terms for name, star in term.anchor.items()}

    def check(self, optimizer: object = None) -> Check:
        """What is held, what is free, what moved and how far: a table to print, with fields.

            print(memory.check(optimizer))

        Of a model that is sharded over the ranks, it is of all shards: every rank has to ask.

        Args:
            optimizer: look at what it trains, in a trainer's wrapper or one of several; without
                one, at all that could be trained.

        Raises:
            InputError: not an optimizer.

        Examples:
            >>> memory = retain.MAS(model, exclude="2").observe(loader).consolidate()
            >>> handle = memory.attach(optimizer)
            >>> memory.check(optimizer).protected
            True
        """
        found = [] if optimizer is None else optimizers_in(optimizer, asked="check")
        self._shard()
        hold_grown(self)
        stepped = [one.optimizer for one in found]
        return checked(self, stepped, self._attachments, self._guard.moved)

    def footprint(self) -> Footprint:
        """How many bytes this memory takes, on this process, before they are taken: print it.

        `EWC` keeps an Ω and a θ* for each task; `SI` observes steps.

        Examples:
            >>> print(retain.MAS(model).footprint())
            the protected weights     300 bytes
            sums while observing      600 bytes
            Ω                         300 bytes
            θ*                        300 bytes
        """
        return Footprint.of(self.selection.trainable(self.model), self.storage)

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers and its settings, to be carried in a training checkpoint.

        Plain data and tensors: `torch.save` writes it, and `torch.load(path, weights_only=True)`
        reads it. `state["tensors"]` is kind -> name of the parameter -> tensor; the kinds are
        `"importance.0"` and `"anchor.0"` (Ω and θ*; with a term per task 1, 2, … as well),
        `"observed"` (sums since the last `consolidate()`), and what a method needs besides.
        An `output=` function is not in it.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> torch.save({"model": model.state_dict(), "memory": memory.state_dict()}, "last.pt")
        """
        self._guard.look()
        tensors, header = self._state.pack()
        more = {**tensors, **self._more_tensors()}
        return {"format": files.VERSION, **header, **described(self), "tensors": more}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Become the memory that `state_dict()` was taken from, its settings included.

        The model, handles and an `output=` function stay as they are. Load the model first.

        Args:
            state: what `state_dict()` returned, also after `torch.save` and `torch.load`.
            strict: refuse a model with parameters that the state does not know; with False, these
                are free until something is observed for them.

        Raises:
            InputError: it is no state of this kind of memory, or does not match the model, with
                every missing, unexpected and misshapen name; nothing is changed then.

        Examples:
            >>> state = retain.MAS(model, strength=2.0).observe(loader).consolidate().state_dict()
            >>> memory = retain.MAS(model)
            >>> memory.load_state_dict(state)
            >>> memory.strength, memory.tasks
            (2.0, 1)
        """
        tensors, header = split(state, type(self))
        made = restored(
            type(self),
            self.model,
            tensors,
            header,
            refusal=lambda said: InputError(f"The state {said}"),
            output=self.output,
            strict=strict,
            offload=self.storage.folder,
        )
        made._state = replace(made._state, terms=self.storage.put(made._state.terms))
        carried = ("_strength", "selection", "storage", "_state", "_routes", "_output_is_lost")
        for name in (*carried, *self._arguments.values(), *self._further):
            setattr(self, name, getattr(made, name))
        self._made = None
        self._guard.anchored()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to `path`, a safetensors file keyed by parameter name; `load` reads it.

        What was observed but not consolidated is in it too. An `output=` function cannot be: give
        it to `retain.load` again.

        Raises:
            FileError: it cannot be written; what was there is untouched.

        Examples:
            >>> retain.MAS(model).observe(loader).consolidate().save("memory.safetensors")
            >>> retain.load("memory.safetensors", model).importance.samples
            32
        """
        self._guard.look()
        tensors, header = self._state.pack()
        flat = flattened({**tensors, **self._more_tensors()})
        files.write(path, "memory", flat, {**header, **described(self)})

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = memo[id(self)] = copy(self)
        mine = {name: value for name, value in vars(twin).items() if name not in NOT_COPIED}
        twin.__dict__.update(deepcopy(mine, memo))
        twin._watch()
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        try:
            pickle.dumps(self.output)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise StateError(
                "A memory with output=… can be pickled only if the function can: define it at the "
                "top of a module, or carry state_dict() instead."
            ) from error
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        """All but what a copy makes anew; sums are copies."""
        running = self._state.running
        state = replace(self._state, running=running.copy() if running else None)
        return {**self.__dict__, "_state": state, **dict.fromkeys(NOT_COPIED)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch()

    # ---- what the four differ in ----

    output: OutputPicker | None = None

    selective: ClassVar[bool] = False  # whether some parameters get no importance by its rule
    signed: ClassVar[bool] = False  # whether what is summed can be negative
    _arguments: ClassVar[Mapping[str, str]] = {}  # of the constructor, plain -> attribute
    _further: ClassVar[tuple[str, ...]] = ()  # attributes that `_take_more` sets

    def _more_tensors(self) -> Tensors:
        """What else is remembered, kind -> name of the parameter -> tensor."""
        return {}

    def _take_more(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back `_more_tensors`."""

    def _grow(self, names: Mapping[str, nn.Parameter]) -> None:
        """What else is remembered of parameters, when these have grown."""

    def _make_estimator(self, parameters: Mapping[str, nn.Parameter]) -> Estimator:
        raise NotImplementedError

    def _all_observed(self) -> Importance:
        """`observed`, as long as nothing is added, with each Ω made when it is asked for."""
        running = self._state.running
        return running.means(self.selection.matching(self.model)) if running else Importance({}, 0)

    def _nothing_to_consolidate(self) -> str:
        return "Nothing was observed since the last consolidate(). Call observe(data) first."

    def _follower(self) -> Follower | None:
        return None

    def _entered_a_loss(self, weight: Number) -> None:
        """The gradient of `penalty()` was asked for, times `weight`."""
        self._in_losses += 1
        self._guard.entered(weight)
        twice = any(handle.attached and handle.form != "loss" for handle in self._attachments)
        if twice and not self._warned_twice:
            self._warned_twice = True
            warnings.warn(
                "penalty() is in a loss while an optimizer is attached, whose steps add it as "
                "well: it counts twice. Use one or the other.",
                stacklevel=2,
            )

    def _held_in_step(self) -> Held:
        return self._held()

    def _version(self) -> tuple[object, ...]:
        """What `_held_in_step` goes by, asked before every step."""
        self._refuse_unconsolidated()
        return self._state.terms, self.selection

    def _joined(self, observed: Importance, merge: Merge) -> tuple[Consolidated, ...]:
        """The terms after `observed` has joined them: one, unless a method keeps several."""
        old = self._state.terms[0] if self._state.terms else None
        means = merged(old, self._as_sharded(observed), merge)
        anchor = old.anchor if old else {}
        return (self.storage.term(means, self.selection.matching(self.model), anchor),)

    # ---- inside ----

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

    def _watch(self) -> None:
        """Begin with no attachment, and with an eye on the weights from where they are now."""
        # Weakly: an optimizer that is done with is not kept for the sake of its handle.
        self._attachments: WeakSet[Attachment] = WeakSet()
        self._guard = Guard(self)
        if self._state.terms:
            self._guard.anchored()

    def _remember(
        self,
        state: State,
        tensors: Mapping[str, Mapping[str, Tensor]],
        output: OutputPicker | None,
        *,
        custom_output: bool,
    ) -> None:
        """Take over what a file or a state held."""
        devices = {name: p.device for name, p in self.selection.matching(self.model).items()}
        self._state = state.placed(devices, self.storage.place)
        self._take_more(tensors)
        self._guard.loaded()
        self.output = output
        self._output_is_lost = custom_output and output is None

    def _estimator(self, parameters: Mapping[str, nn.Parameter]) -> Estimator:
        """The estimator for these parameters, which remembers what it learned about the model."""
        key = {name: id(p) for name, p in parameters.items()}
        if self._made is None or self._made[0] != key:
            self._made = key, self._make_estimator(parameters)
        return self._made[1]

    def _weight(self) -> float:
        return self.coefficient * self.strength

    def _held(self) -> Held:
        self._refuse_unconsolidated()
        if not self._state.terms and not self._warned:
            self._warned = True
            warnings.warn(
                f"Nothing is protected yet: {type(self).__name__} has no importance before "
                "consolidate(), and the penalty is 0.",
                stacklevel=3,
            )
        return self._holding()

    def _holding(self) -> Held:
        """What is held, also of what has grown."""
        self._shard()
        try:
            return holds(self.model, self.selection, self._state.terms)
        except ModelError:
            if not hold_grown(self):
                raise
            return holds(self.model, self.selection, self._state.terms)

    def _shard(self) -> None:
        """Let Ω and θ* be sharded over the ranks as the parameters are by now."""
        terms = sharded(self._state.terms, self.selection.matching(self.model))
        if terms is not self._state.terms:
            self._state = replace(self._state, terms=self.storage.put(terms))

    def _refuse_unconsolidated(self) -> None:
        running = self._state.running
        if running and running.samples:
            raise StateError(
                f"{running.samples} samples were observed and never consolidated. Call "
                "consolidate() when the model has learned what is to be kept."
            )


@contextmanager
def _not_transformed() -> Iterator[None]:
    """In place of torch's error about a Function inside of torch.func.grad, one that says more."""
    try:
        yield
    except RuntimeError as error:
        if "functorch" not in str(error):
            raise
        raise StateError(
            "penalty() is of the model's own weights, which a transform of torch.func (grad, vmap, "
            "jvp) does not follow. Call it outside, and add its gradients: "
            "torch.autograd.grad(memory.penalty(), parameters)."
        ) from error


def _entered(output: OutputPicker | None) -> AbstractContextManager[Any]:
    """An `output=` that is a context too is entered for as long as the model is observed."""
    return output if isinstance(output, AbstractContextManager) else nullcontext()
