"""An optimizer whose every step holds θ near θ*."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from retain.errors import InputError, StateError
from retain.memory.step_size import step_size
from retain.penalty import Hold, add_gradients, proximal_, value

PROXIMAL = ("proximal", "adaptive")  # the forms that follow a step, in place of joining it
Held = Mapping[str, tuple[nn.Parameter, Sequence[Hold]]]


class Follower(Protocol):
    """What wants to see where a step goes: the gradient of the task, then the way it took."""

    def opens(
        self, optimizer: Optimizer, gradient: Callable[[nn.Parameter], Tensor | None]
    ) -> None:
        """A gradient is there, and the weights are about to move."""

    def closes(self) -> None:
        """The weights have moved."""


class _Lent(NamedTuple):
    ours: Tensor
    theirs: Tensor | None


class _Ledger:
    """What stands in for an optimizer's gradients during a step, and who put it there."""

    def __init__(self) -> None:
        self.lent: dict[int, _Lent] = {}  # by the id of the parameter
        self.lenders: set[Attachment] = set()

    def own(self, p: nn.Parameter) -> Tensor | None:
        """The gradient that the user's loss gave `p`, without any penalty of an attachment."""
        lent = self.lent.get(id(p))
        return lent.theirs if lent is not None and p.grad is lent.ours else p.grad

    def lend(self, lender: Attachment, p: nn.Parameter, gradient: Tensor) -> None:
        """Let `gradient` stand in for the one of `p`."""
        self.lenders.add(lender)
        self.lent[id(p)] = _Lent(gradient, self.own(p))
        p.grad = gradient

    def give_back(self, optimizer: Optimizer) -> None:
        """Every parameter has the user's own gradient again."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = self.own(p)
        self.lent.clear()
        self.lenders.clear()


# Shared by all attachments of an optimizer, so that two memories can hold it at once.
_ledgers: WeakKeyDictionary[Optimizer, _Ledger] = WeakKeyDictionary()


class Attachment:
    """The handle that `attach` returns: `remove()` it, or use it as a context manager."""

    def __init__(
        self,
        optimizer: Optimizer,
        form: str,
        *,
        held: Callable[[], Held],
        weight: Callable[[], float],
        follower: Follower | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.form = form
        self._held = held
        self._weight = weight
        self.follower = follower
        self._ledger = _ledgers.setdefault(optimizer, _Ledger())
        self._now: list[tuple[nn.Parameter, Sequence[Hold], dict[str, Any], str]] = []
        self._stand_ins: dict[int, Tensor] = {}  # by the id of the parameter
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @property
    def attached(self) -> bool:
        """Whether steps of the optimizer are still protected by it."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Leave the optimizer as it was; a second time changes nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._stand_ins.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    @torch.no_grad()
    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self in self._ledger.lenders:  # the last step was broken off by an exception
            self._ledger.give_back(optimizer)
        self._now = list(self._in_optimizer())
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
        self._ledger.give_back(optimizer)
        if self.form in PROXIMAL and not skipped(optimizer):
            for p, holds, group, _name in self._now:
                rate, metric = float(group["lr"]), None
                if self.form == "adaptive":
                    rate, metric = step_size(optimizer, group, p)
                proximal_(p, holds, rate * self._weight(), metric)
        if self.follower is not None:
            self.follower.closes()
        self._now = []

    def _around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The user's closure, with the penalty in the gradients that it leaves and in its loss."""

        def evaluated() -> Any:
            self._ledger.give_back(self.optimizer)
            loss = closure()
            with torch.no_grad():
                self._gradients_are_there()
                if self.form != "gradient" or loss is None:
                    return loss
                weight = self._weight()
                return loss + weight * sum(float(value(p, h)) for p, h, _g, _n in self._now)

        return evaluated

    def _gradients_are_there(self) -> None:
        if self.follower is not None:
            self.follower.opens(self.optimizer, self._ledger.own)
        if self.form == "gradient":
            self._lend()

    def _lend(self) -> None:
        """Let g + 2λΩ(θ − θ*) stand in for every gradient g until the step is done."""
        if not self._now or skipped(self.optimizer):
            return
        self._refuse_sparse()
        scale = self._weight() * grad_scale(self.optimizer)
        for sign in (1, -1):  # an optimizer that climbs must be told the opposite
            some = [one for one in self._now if one[2].get("maximize", False) == (sign < 0)]
            if not some:
                continue
            gradients = [p.grad for p, *_ in some]
            new = add_gradients(
                gradients,
                [p.detach() for p, *_ in some],
                [holds for _, holds, *_ in some],
                sign * scale,
                [self._stand_in(p) for p, *_ in some],
            )
            for (p, *_), before, after in zip(some, gradients, new):
                # Without a gradient, and at its anchor, a weight stays out of the step.
                if before is not None or after.any():
                    self._ledger.lend(self, p, after)

    def _stand_in(self, p: nn.Parameter) -> Tensor | None:
        """Memory for the gradient of `p` during a step, kept from step to step on a CPU.

        There, fresh memory costs more than the sum that is written to it.
        """
        like = p if p.grad is None else p.grad
        if like.device.type != "cpu":
            return None
        kept = self._stand_ins.get(id(p))
        if kept is None or (kept.shape, kept.dtype, kept.stride()) != (
            like.shape,
            like.dtype,
            like.stride(),
        ):
            kept = self._stand_ins[id(p)] = torch.empty_like(like, requires_grad=False)
        return kept

    def _in_optimizer(self) -> Iterator[tuple[nn.Parameter, Sequence[Hold], dict[str, Any], str]]:
        held = {id(p): (name, holds) for name, (p, holds) in self._held().items()}
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if id(p) in held and p.requires_grad:
                    name, holds = held[id(p)]
                    yield p, holds, group, name

    def _refuse_sparse(self) -> None:
        sparse = [n for p, _h, _g, n in self._now if p.grad is not None and p.grad.is_sparse]
        if sparse:
            raise InputError(
                f"Sparse gradients of {', '.join(sparse)}: the penalty's gradient is dense. "
                'Use attach(optimizer, form="proximal"), or leave them out with exclude=…'
            )


def grad_scale(optimizer: Optimizer) -> float:
    """What a GradScaler leaves in the gradients for a fused optimizer to divide by; 1 otherwise."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler found infinities, so that a fused optimizer will not move."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def refuse_optimizer(
    optimizer: object,
    form: str,
    forms: Sequence[str],
    protected: Iterable[nn.Parameter],
    attached: Iterable[Attachment],
) -> None:
    """Nothing, if `optimizer` can be attached in this form, and is not in `attached` already.

    Raises:
        InputError: it cannot, or it holds none of the `protected` parameters.
        StateError: it is.
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"attach got a {type(optimizer).__name__}; expected a torch optimizer.")
    if form not in forms:
        raise InputError(f"form={form!r}; expected {' or '.join(map(repr, forms))}.")
    if form in PROXIMAL and any("lr" not in group for group in optimizer.param_groups):
        raise InputError(
            f'form="{form}" needs the learning rate as group["lr"], which this optimizer lacks. '
            'Use form="gradient".'
        )
    if any(handle.optimizer is optimizer for handle in attached):
        raise StateError(
            "This optimizer is attached already, and the penalty would count twice. "
            "Call remove() on the first handle before."
        )
    inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in inside for p in protected):
        raise InputError(
            "The optimizer holds none of the protected parameters. Make it from "
            "model.parameters() of the same model, after moving or wrapping the model."
        )
