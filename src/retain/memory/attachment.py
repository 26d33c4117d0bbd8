"""An optimizer whose every step holds θ near θ*."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.errors import InputError
from retain.memory.lent_gradients import ledger_of
from retain.memory.optimizers import FOLLOWING, FoundOptimizer
from retain.memory.step_size import step_sizes
from retain.memory.steps import is_done
from retain.penalty import (
    Chunks,
    Hold,
    Metric,
    Number,
    add_gradients,
    on_host,
    proximals_,
    values,
)
from retain.penalty.hold import is_accelerated
from retain.penalty.many import is_small
from retain.sharding import is_sharded, like, local, over_shards

StepWatcher = Callable[[Optimizer], None]  # is told of every protected step when it is done
Held = Mapping[str, tuple[nn.Parameter, Sequence[Hold]]]


class Follower(Protocol):
    """What wants to see where a step goes: the gradient of the task, then the way it took."""

    def opens(
        self, optimizer: Optimizer, gradient: Callable[[nn.Parameter], Tensor | None]
    ) -> None:
        """A gradient is there, and the weights are about to move."""

    def closes(self) -> None:
        """The weights have moved."""


class _Entry(NamedTuple):
    """A parameter of the optimizer, what holds it, and the group that it is in."""

    p: nn.Parameter
    holds: Sequence[Hold]
    group: dict[str, Any]
    name: str

    @property
    def theta(self) -> Tensor:
        """What is computed on: the parameter, or this rank's shard of it."""
        return local(self.p.detach()) if is_sharded(self.p) else self.p


class _Seen(NamedTuple):
    """What was seen of a weight without a gradient, and of which state of it."""

    away: bool
    version: int
    memory: int
    holds: Sequence[Hold]

    @classmethod
    def now(cls, entry: _Entry, away: bool) -> _Seen:
        return cls(away, entry.p._version, entry.p.data_ptr(), entry.holds)

    def is_of(self, entry: _Entry) -> bool:
        return self.holds is entry.holds and self == _Seen.now(entry, self.away)


class Attachment:
    """One torch optimizer whose steps are protected.

    What a step costs follows what the optimizer holds, not how large the model is: what holds
    which parameter is looked up anew only when the memory or the optimizer has changed.

    Args:
        found: the optimizer, and what is around it.
        form: "gradient", "proximal", "adaptive", or another, which adds nothing.
        held: looks up what is held.
        weight: the factor of Σ Ω (θ − θ*)² now.
        version: what `held` goes by: while these are the same objects, it would find the same.
        follower: is told of every step.
    """

    def __init__(
        self,
        found: FoundOptimizer,
        form: str,
        *,
        held: Callable[[], Held],
        weight: Callable[[], float],
        version: Callable[[], tuple[object, ...]] = tuple,
        follower: Follower | None = None,
        released: Callable[[Optimizer], None] | None = None,
    ) -> None:
        self.optimizer = optimizer = found.optimizer
        self.steps = 0  # that were protected
        self._released = released
        self.form = form
        self.follower = follower
        self._held, self._weight, self._version = held, weight, version
        self._ledger = ledger_of(optimizer)
        self._ledger.enter(id(self), [one for one in found.around if hasattr(one, "step")])
        # by the token of each handle that holds it: what is told of every step, if anything
        self._handles: dict[object, StepWatcher | None] = {}
        self._entries: list[_Entry] = []
        self._seen: tuple[tuple[object, ...], list[Any], list[int], list[torch.Size]] | None = None
        self._sharded = False  # whether any of them is
        self._chunks: dict[object, Chunks] = {}  # for each call with parameters of its own
        self._now: list[_Entry] = []
        self._away: dict[int, _Seen] = {}  # by the id of the parameter
        self._stand_ins: dict[int, Tensor] = {}  # by the id of the parameter
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @property
    def attached(self) -> bool:
        """Whether steps of the optimizer are still protected by it."""
        return bool(self._hooks)

    def go_last(self) -> None:
        """Let the penalty join the gradients after other hooks before a step are done with them.

        Hooks that came later would clip the penalty, or replace it with gradients of their own.
        """
        hooks = getattr(self.optimizer, "_optimizer_step_pre_hooks", {})
        own = self._hooks[0].id if self._hooks else None
        if own in hooks and next(reversed(hooks)) != own:
            self._hooks[0].remove()
            self._hooks[0] = self.optimizer.register_step_pre_hook(self._before)

    def held_by(self, handle: object, watcher: StepWatcher | None) -> None:
        """Stay attached for the sake of `handle`, too, and tell `watcher` of every step."""
        self._handles[handle] = watcher

    def let_go(self, handle: object) -> None:
        """Leave the optimizer as it was, if no other handle holds it."""
        self._handles.pop(handle, None)
        if self._handles:
            return
        for hook in self._hooks:
            hook.remove()
        if self._hooks and self._released is not None:
            self._released(self.optimizer)
        self._hooks = []
        self._stand_ins.clear()
        self.forget()
        self._ledger.leave(id(self))

    def forget(self) -> None:
        """Let go of what was looked up in the memory; it is looked up anew before the next step."""
        self._entries, self._seen = [], None
        self._away.clear()
        self._chunks.clear()

    @torch.no_grad()
    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if id(self) in self._ledger.lenders:  # the last step was broken off by an exception
            self._ledger.give_back()
        self._ledger.step_begins()
        self._now = self._in_optimizer()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._gradients_are_there()
            return None
        wrapped = self._around(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._ledger.give_back()
        if self.form in FOLLOWING:
            self._follow()
        if self._away:
            self._moved()
        if self.follower is not None:
            self.follower.closes()
        self._now = []
        self.steps += 1
        watchers = [one for one in self._handles.values() if one is not None]
        told = [partial(one, self.optimizer) for one in watchers]
        self._ledger.step_ends(id(self), told, partial(is_done, optimizer))

    def _follow(self) -> None:
        """The proximal step, with the learning rate or with the optimizer's own step sizes."""
        moved = _share_that_moves(self.optimizer)
        if not self._now or (not isinstance(moved, Tensor) and not moved):
            return
        sizes: Sequence[tuple[Number, Metric | None]]
        if self.form == "adaptive":
            sizes = step_sizes(self.optimizer, [(e.p, e.group) for e in self._now])
        else:
            sizes = [(on_host(e.group["lr"]), None) for e in self._now]
        # One scale for all that go by the same rate, so that a kernel for all can take it.
        weight = self._weight()
        scales: dict[tuple[int, torch.device], Number] = {}
        for (rate, _metric), entry in zip(sizes, self._now, strict=True):
            key = id(rate), entry.p.device
            if key not in scales:
                scale = rate * weight
                scales[key] = scale * moved.to(key[1]) if isinstance(moved, Tensor) else scale
        metrics = [metric for _rate, metric in sizes]
        if self._sharded:
            metrics = [None if metric is None else metric.here() for metric in metrics]
        proximals_(
            self._thetas(self._now),
            [e.holds for e in self._now],
            [scales[id(r), e.p.device] for (r, _m), e in zip(sizes, self._now, strict=True)],
            metrics,
            chunks=self._chunks.setdefault(self.form, Chunks()),
        )

    def _thetas(self, entries: Iterable[_Entry]) -> list[Tensor]:
        """What is computed on: the parameters, or this rank's shards of them."""
        return [e.theta for e in entries] if self._sharded else [e.p for e in entries]

    def _around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The user's closure, with the penalty in the gradients that it leaves and in its loss."""

        def evaluated() -> Any:
            self._ledger.give_back()
            loss = closure()
            with torch.no_grad():
                self._gradients_are_there()
                if self.form != "gradient" or not isinstance(loss, (Tensor, int, float)):
                    return loss
                found = [
                    over_shards(one, e.p)
                    for one, e in zip(
                        values([e.theta for e in self._now], [e.holds for e in self._now]),
                        self._now,
                    )
                ]
                if isinstance(loss, Tensor):
                    return loss + self._weight() * sum(one.to(loss) for one in found)
                return loss + self._weight() * sum(float(one) for one in found)

        return evaluated

    def _gradients_are_there(self) -> None:
        if is_idle(self.optimizer, self._ledger.own):
            return
        if self.follower is not None:
            self.follower.opens(self.optimizer, self._ledger.own)
        if self.form == "gradient":
            self._lend()

    def _lend(self) -> None:
        """Let g + 2λΩ(θ − θ*) stand in for every gradient g until the step is done."""
        if not self._now or _share_that_moves(self.optimizer) is False:
            return
        self._refuse_sparse()
        scale = self._weight() * grad_scale(self.optimizer)
        for sign in (1, -1):  # an optimizer that climbs must be told the opposite
            some = [e for e in self._now if e.group.get("maximize", False) == (sign < 0)]
            if not some:
                continue
            gradients = [e.p.grad for e in some]
            if self._sharded:
                gradients = [None if g is None else local(g) for g in gradients]
            new = add_gradients(
                gradients,
                self._thetas(some),
                [e.holds for e in some],
                sign * scale,
                outs=lambda i, some=some: self._stand_in(some[i].p),  # type: ignore[misc]
                chunks=self._chunks.setdefault(sign, Chunks()),
            )
            for entry, before, after in zip(some, gradients, new, strict=True):
                # Without a gradient, and at its anchor, a weight stays out of the step.
                if before is not None or self._is_away(entry, after):
                    ours = like(after, entry.p) if self._sharded else after
                    self._ledger.lend(id(self), entry.p, ours)

    def _is_away(self, entry: _Entry, pull: Tensor) -> bool:
        """Whether a weight without a gradient is away from its anchor."""
        if is_sharded(entry.p):  # on any rank, so that all take the same step
            return bool(over_shards(pull.any().float(), entry.p))
        if not is_accelerated(pull):
            return bool(pull.any())
        # To look means to wait for the accelerator: only if something else than a protected step
        # moved the weight since it was seen.
        seen = self._away.get(id(entry.p))
        if seen is None or not seen.is_of(entry):
            seen = self._away[id(entry.p)] = _Seen.now(entry, bool(pull.any()))
        return seen.away

    def _moved(self) -> None:
        """A protected step has moved the weights: those that were away still are."""
        for entry in self._now:
            seen = self._away.get(id(entry.p))
            if seen is not None and seen.away:
                self._away[id(entry.p)] = _Seen.now(entry, away=True)

    def _stand_in(self, p: nn.Parameter) -> Tensor | None:
        """Memory for the gradient of a large `p` in a step, kept from step to step on a CPU.

        There, fresh memory costs more than the sum that is written to it.
        """
        if is_small(p):
            return None
        given = local((p if p.grad is None else p.grad).detach())
        if is_accelerated(given):
            return None
        kept = self._stand_ins.get(id(p))
        if kept is None or (kept.shape, kept.dtype, kept.stride()) != (
            given.shape,
            given.dtype,
            given.stride(),
        ):
            kept = self._stand_ins[id(p)] = torch.empty_like(given, requires_grad=False)
        return kept

    def _in_optimizer(self) -> list[_Entry]:
        """What is held in the optimizer now, without frozen parameters."""
        version = self._version()
        groups = self.optimizer.param_groups
        inside = [id(p) for group in groups for p in group["params"]]
        known = self._seen is not None and (
            len(self._seen[0]) == len(version)
            and all(a is b for a, b in zip(self._seen[0], version))
            and len(self._seen[1]) == len(groups)
            and all(a is b for a, b in zip(self._seen[1], groups))
            and self._seen[2] == inside
            and self._seen[3] == [e.p.shape for e in self._entries]
        )
        if not known:
            self._entries = list(self._looked_up())
            self._sharded = any(is_sharded(e.p) for e in self._entries)
            self._chunks.clear()
            shapes = [e.p.shape for e in self._entries]
            self._seen = version, list(groups), inside, shapes
        return [entry for entry in self._entries if entry.p.requires_grad]

    def _looked_up(self) -> Iterator[_Entry]:
        held = {id(p): (name, holds) for name, (p, holds) in self._held().items()}
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if id(p) in held:
                    name, holds = held[id(p)]
                    yield _Entry(p, holds, group, name)

    def _refuse_sparse(self) -> None:
        sparse = [e.name for e in self._now if e.p.grad is not None and e.p.grad.is_sparse]
        if sparse:
            raise InputError(
                f"Sparse gradients of {', '.join(sparse)}: the penalty's gradient is dense. "
                'Use attach(optimizer, form="proximal"), or leave them out with exclude=…'
            )


def grad_scale(optimizer: Optimizer) -> Number:
    """What a GradScaler leaves in the gradients for a fused optimizer to divide by; 1 otherwise."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else on_host(scale)


def skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler found infinities, so that a fused optimizer will not move.

    Waits for an accelerator, if it is told there.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _share_that_moves(optimizer: Optimizer) -> bool | Tensor:
    """Whether a fused optimizer moves, or, where only an accelerator knows, 1 or 0 there."""
    found = getattr(optimizer, "found_inf", None)
    if found is None:
        return True
    return 1 - found if is_accelerated(found) else not bool(found)


def is_idle(optimizer: Optimizer, own: Callable[[nn.Parameter], Tensor | None]) -> bool:
    """Whether a step is not meant to move anything, only to make the optimizer's state.

    Saving a checkpoint does that (torch.distributed.checkpoint.state_dict): a learning rate of 0,
    and gradients of 0. A penalty in such a step would stay in the optimizer's means for ever.

    Args:
        optimizer: that is about to step.
        own: the gradient that the user's loss gave a parameter.
    """
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    if not rates or None in rates:  # it finds its own
        return False
    if any(isinstance(rate, Tensor) or rate != 0 for rate in map(on_host, rates)):
        return False
    gradients = [own(p) for group in optimizer.param_groups for p in group["params"]]
    return not any(g is not None and (g.is_sparse or bool(local(g).any())) for g in gradients)
