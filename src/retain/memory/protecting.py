"""From Ω to protection: the penalty in a loss, or in the steps of an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from retain import arguments
from retain.drift import Drift
from retain.eagerly import eagerly
from retain.errors import InputError, StateError
from retain.memory.attachment import Attachment
from retain.memory.forecast import (
    Loss,
    after_one_step,
    refuse_unusable,
    warn_if_unrelated,
    weights_in,
)
from retain.memory.growth import hold_grown
from retain.memory.handle import Handle, attached
from retain.memory.held_and_free import Check, checked
from retain.memory.monitor import Log, Monitor
from retain.memory.optimizers import FoundOptimizer, optimizers_in, refuse_form, refuse_unheld
from retain.memory.remembered import Remembered
from retain.parameters import Weights, canonical
from retain.penalty import Number, Penalty
from retain.saying import warn
from retain.sharding import is_sharded, local, over_shards


class Protecting(Remembered):
    """The part of a memory that holds weights, and says how far they have moved."""

    @eagerly
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
        found = self._found()
        held = found.held
        if not held:
            p = next(iter(self.model.parameters()))
            return torch.zeros((), dtype=p.dtype, device=p.device, requires_grad=True)
        totals = []
        for shards in (False, True):  # what a rank has all of, and what it has a shard of
            some = [(p, several) for p, several in held.values() if is_sharded(p) is shards]
            if some:
                every = [several for _p, several in some]
                given = every, self._weight(), self._entered_a_loss, found.chunks[shards]
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

        def made(one: FoundOptimizer) -> Attachment:
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
                self._drift_in_training,
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
        held = self._held_somewhere()
        weights = weights_in(self.model, held)
        assert weights is not None  # a model has weights
        refuse_unusable(weights, held)
        return self._drift_of(weights, held)

    def _drift_in_training(self) -> Drift | None:
        """The same before there is a θ* (None), or where weights are not finite any more."""
        if not self.tasks:
            return None
        held = self._held_somewhere()
        weights = weights_in(self.model, held)
        assert weights is not None
        return self._drift_of(weights, held)

    def _drift_of(self, weights: Weights, held: Weights) -> Drift:
        anchor, importance = self.anchor, self.importance
        omegas = {name: importance[name] for name in held}
        return Drift.of(omegas, anchor, weights, importance.squared_norm)

    def _held_somewhere(self) -> dict[str, Tensor]:
        """Name -> weight of all that is held now.

        Raises:
            StateError: nothing was consolidated.
        """
        held: dict[str, Tensor] = {name: p for name, (p, _) in self._holding().items()}
        if not held:
            raise StateError("Nothing was consolidated: there is no Ω and no θ* to compare with.")
        return held

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
        arguments.function("loss", loss)
        arguments.number("lr", lr, above=0)
        held = self._held_somewhere()
        known = {canonical(name) for name in self.model.state_dict()}
        weights = weights_in(other, held, known)
        if weights is not None and loss is not None:
            raise InputError("A forecast for weights looks at no data: leave loss out.")
        if weights is None:
            weights = after_one_step(self.model, other, held, loss=loss, lr=lr)
        else:
            refuse_unusable(weights, held)
            warn_if_unrelated(weights, self.anchor)
        return self._drift_of(weights, held)

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

    # ---- inside ----

    def _entered_a_loss(self, weight: Number) -> None:
        """The gradient of `penalty()` was asked for, times `weight`."""
        self._in_losses += 1
        self._guard.entered(weight)
        twice = any(handle.attached and handle.form != "loss" for handle in self._attachments)
        if twice and not self._warned_twice:
            self._warned_twice = True
            warn(
                "penalty() is in a loss, but the steps of the attached optimizer add it, too, so "
                "it counts twice. Use one or the other."
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
