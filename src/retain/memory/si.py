"""Synaptic Intelligence: Ω from the way that the weights took through training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from retain import arguments
from retain.eagerly import eagerly
from retain.errors import StateError
from retain.importance import Importance
from retain.memory.attachment import Attachment, Follower, Held, grad_scale, skipped
from retain.memory.body import Memory
from retain.memory.consolidated import Merge
from retain.memory.growth import padded_start
from retain.memory.path_integral import Stretch, importance
from retain.memory.running_sums import Running
from retain.memory.state import Tensors
from retain.parameters import Patterns
from retain.penalty import Number, add_gradients

SCALED = 1024.0  # nobody weighs a penalty like this, but a GradScaler does


class SI(Memory):
    """Synaptic Intelligence (Zenke et al., ICML 2017): follows the optimizer it is attached to.

    ω = −Σ_steps g · Δθ, with g the gradient of the task's loss alone; at `consolidate()`,
    Ω ← Ω + max(ω, 0) / (Δ_task² + ξ); the penalty is λ Σ Ω (θ − θ*)².

    Attach it before the first task is learned, and call `consolidate()` at the end of each task;
    there is no data to observe. `attach` adds the penalty itself; g is taken before that. To have
    `penalty()` in the loss instead, attach with `form="loss"`: then nothing is added, and the
    gradient of `penalty()` is taken out of g again. That works only if gradients are not rescaled
    between `backward()` and `step()`; with clipping or a GradScaler, use another form.

    Args:
        model: the network, of any kind; nothing is put on it.
        strength: λ (c in the source).
        damping: ξ, which keeps Ω finite for weights that hardly moved.
        include: names or patterns of the parameters to protect; all by default.
        exclude: names or patterns of parameters to leave free.
        dtype: in which Ω and θ* are kept; by default Ω in single precision, θ* as the weights are.
        device: where Ω and θ* are kept; by default with the weights.
        offload: a folder on a fast disk, where Ω and θ* are kept and read at each step.

    Examples:
        >>> import torch, retain
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> memory = retain.SI(model)
        >>> with memory.attach(optimizer):
        ...     model(torch.randn(8, 4)).square().sum().backward()
        ...     optimizer.step()
        >>> memory.consolidate().importance
        Importance(2 parameters, 10 weights, 1 samples)
    """

    forms: ClassVar[tuple[str, ...]] = ("gradient", "proximal", "adaptive", "loss")
    signed: ClassVar[bool] = True
    _arguments: ClassVar[Mapping[str, str]] = {"damping": "damping"}
    _further: ClassVar[tuple[str, ...]] = ("_start",)

    shared = False  # all ranks follow the same steps

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 1.0,
        damping: float = 1e-3,
        include: Patterns = None,
        exclude: Patterns = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        offload: str | os.PathLike[str] | None = None,
    ) -> None:
        arguments.number("damping", damping, above=0)
        super().__init__(
            model,
            strength=strength,
            include=include,
            exclude=exclude,
            dtype=dtype,
            device=device,
            offload=offload,
        )
        self.damping = damping
        self._start: dict[str, Tensor] = {}

    def observe(self, data: Any, *, max_samples: int | None = None, progress: bool = True) -> Self:
        """Never returns: SI learns from training, not from data.

        Raises:
            StateError: always; says what to do.

        Examples:
            >>> try:
            ...     retain.SI(model).observe(loader)
            ... except retain.errors.StateError as error:
            ...     print(str(error).split(".")[0])
            SI does not observe data
        """
        raise StateError(
            "SI does not observe data. Call attach(optimizer) before training and consolidate() "
            "at the end of the task."
        )

    @property
    def observed(self) -> Importance:
        """Ω of the steps followed since the last `consolidate()`; its `samples` are the steps.

        Examples:
            >>> memory = retain.SI(model)
            >>> with memory.attach(optimizer):
            ...     criterion(model(x), y).backward()
            ...     optimizer.step()
            >>> memory.observed.samples  # steps
            1
        """
        running = self._state.running
        if running is None or not running.samples:
            return Importance({}, 0)
        parameters = self.selection.matching(self.model)
        running.refuse_changed(parameters)
        omega = importance(running.sums, self._start, parameters, self.damping)
        return Importance(omega, running.samples, dict.fromkeys(omega, "path"))

    @observed.setter
    def observed(self, given: Importance) -> None:
        raise StateError(
            "SI learns from the steps that it follows, not from importance given to it."
        )

    def consolidate(self, merge: Merge = "sum") -> Self:
        """This memory, with Ω of the steps followed added, and θ* and the start of the path here.

        Raises:
            StateError: no step was followed.
            NonFiniteError: the path holds NaN or infinity.

        Examples:
            >>> memory = retain.SI(model)
            >>> with memory.attach(optimizer):
            ...     criterion(model(x), y).backward()
            ...     optimizer.step()
            >>> memory.consolidate().tasks
            1
        """
        super().consolidate(merge)
        self._start = {}
        return self

    @eagerly
    def penalty(self) -> Tensor:
        """λ Σ Ω (θ − θ*)², a scalar with gradient; for the loss with `attach(…, form="loss")`.

        Examples:
            >>> memory = retain.SI(model)
            >>> with memory.attach(optimizer, form="loss"):  # adds nothing to steps
            ...     for task in (new_data, new_data):
            ...         for x, y in task:
            ...             optimizer.zero_grad()
            ...             loss = criterion(model(x), y)
            ...             (loss + memory.penalty() if memory.tasks else loss).backward()
            ...             optimizer.step()
            ...         memory = memory.consolidate()
        """
        for attachment, path in self._live():
            groups = attachment.optimizer.param_groups
            if all(p.grad is None for group in groups for p in group["params"]):
                path.carried = 0.0  # gradients were thrown away without a step
        return super().penalty()

    def _live(self) -> list[tuple[Attachment, _Path]]:
        followed = [(a, a.follower) for a in self._attachments if a.attached]
        return [(a, path) for a, path in followed if isinstance(path, _Path)]

    def _follower(self) -> Follower:
        return _Path(self)

    def _entered_a_loss(self, weight: Number) -> None:
        super()._entered_a_loss(weight)
        for _attachment, path in self._live():
            path.carried += weight

    def _refuse_unconsolidated(self) -> None:
        """Steps that were never consolidated are the ordinary case: the task is being learned."""

    def _held_in_step(self) -> Held:
        return self._holding()

    def _all_observed(self) -> Importance:
        return self.observed

    def _nothing_to_consolidate(self) -> str:
        return (
            "SI followed no step since the last consolidate(). Call attach(optimizer) before "
            "training; steps that a GradScaler skipped do not count."
        )

    def _more_tensors(self) -> Tensors:
        return {"start": dict(self._start)}

    def _take_more(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        parameters = self.selection.matching(self.model)
        self._start = {
            name: start.to(parameters[name].device)
            for name, start in tensors.get("start", {}).items()
            if name in parameters
        }

    def _grow(self, names: Mapping[str, nn.Parameter]) -> None:
        self._start = padded_start(self._start, names)

    def _walks(self, stretch: Stretch, steps: int) -> None:
        """Add a stretch, at whose end the weights are now, to ω."""
        running = self._state.running
        if running is None:
            running, self._start = Running(), {}
        for name, before in stretch.before.items():
            if name not in self._start:
                self._start[name] = self._anchor_if_equal(name, before)
        running.add(stretch.done(), steps)
        self._state = replace(self._state, running=running)

    def _anchor_if_equal(self, name: str, before: Tensor) -> Tensor:
        """`before`, or θ* if that is the same: one copy is enough, for neither is written to."""
        anchor = self._state.terms[0].anchor.get(name) if self._state.terms else None
        if anchor is None or anchor.dtype != before.dtype or anchor.device != before.device:
            return before
        return anchor if torch.equal(anchor, before) else before


class _Path:
    """Follows the steps of one optimizer for the SI that it belongs to.

    Attributes:
        carried: the weight with which `penalty()` entered the gradients since the last step.
    """

    def __init__(self, memory: SI) -> None:
        self.memory = memory
        self.carried: Number = 0.0
        self._stretch: Stretch | None = None
        self._names: tuple[object, dict[int, str]] = (None, {})

    def opens(self, optimizer: Optimizer, own: Callable[[nn.Parameter], Tensor | None]) -> None:
        """A stretch begins here, downhill along the gradient of the task's loss alone."""
        self._finish(steps=0)
        carried, self.carried = float(self.carried), 0.0
        if skipped(optimizer):
            return
        scale = grad_scale(optimizer)
        if carried and carried / float(scale) >= SCALED:
            raise StateError(
                f"penalty() entered the loss with weight {carried:g}: it seems to be scaled by a "
                "GradScaler, and SI cannot tell the task's gradient from the penalty's. Leave "
                'penalty() out of the loss and use attach(optimizer, form="gradient").'
            )
        followed = [
            (name, p, g, -1 if group.get("maximize") else 1)
            for name, p, group in self._named(optimizer)
            if (g := own(p)) is not None and p.requires_grad
        ]
        parameters = {name: p for name, p, _g, _sign in followed}
        gradients = {name: g for name, _p, g, _sign in followed}
        held = self.memory._held_in_step() if carried else {}
        names = [name for name in parameters if name in held]
        # g_task = g − carried · 2λΩ(θ − θ*)
        without = add_gradients(
            [gradients[name] for name in names],
            [parameters[name] for name in names],
            [held[name][1] for name in names],
            -carried * self.memory._weight(),
        )
        gradients.update(zip(names, without, strict=True))
        gradients = {name: gradients[name] * (sign / scale) for name, _p, _g, sign in followed}
        if parameters:
            self._stretch = Stretch(parameters, gradients)

    def closes(self) -> None:
        """The step is done, and the stretch ends where the weights are now."""
        self._finish(steps=1)

    def _finish(self, steps: int) -> None:
        if self._stretch is not None:
            self.memory._walks(self._stretch, steps)
            self._stretch = None

    def _named(self, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
        """The parameters of the optimizer that the memory picks, their names and groups."""
        selection, names = self._names
        inside = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        if selection is not self.memory.selection or any(id(p) not in names for p, _ in inside):
            picked = self.memory.selection.matching(self.memory.model)
            names = {id(p): name for name, p in picked.items()}
            self._names = self.memory.selection, names
        return ((names[id(p)], p, group) for p, group in inside if id(p) in names)
