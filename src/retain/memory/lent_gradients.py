"""Gradients that stand in for the user's own during a step, and are always given back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from torch.optim import Optimizer


class LentGradient(NamedTuple):
    """What stands in the place of a parameter's own gradient for the length of a step."""

    to: nn.Parameter
    ours: tuple[Tensor, ...]  # of every attachment, the last of which stands in p.grad
    theirs: Tensor | None

    @property
    def stands(self) -> bool:
        """Whether one of ours is there, and not what somebody else has put there since."""
        there = self.to.grad
        return there is self.ours[-1] or any(there is one for one in self.ours)


class Ledger:
    """What stands in for an optimizer's gradients during a step, and who put it there.

    Shared by everything that is attached to the optimizer, so that two memories can hold it at
    once.
    """

    def __init__(self) -> None:
        self.lent: dict[int, LentGradient] = {}  # by the id of the parameter
        self.lenders: set[int] = set()
        self._users: dict[int, None] = {}  # in the order in which they are called
        self._waiting: list[Callable[[], None]] = []
        self._guards: dict[int, _Guard] = {}  # by the id of what has a `step`

    @property
    def in_use(self) -> bool:
        """Whether anything is attached to the optimizer."""
        return bool(self._users)

    def own(self, p: nn.Parameter) -> Tensor | None:
        """The gradient that the user's loss gave `p`, without any penalty of an attachment."""
        lent = self.lent.get(id(p))
        return lent.theirs if lent is not None and lent.stands else p.grad

    def lend(self, lender: int, p: nn.Parameter, gradient: Tensor) -> None:
        """Let `gradient` stand in for the one of `p`."""
        self.lenders.add(lender)
        before = self.lent.get(id(p))
        if before is not None and before.stands:
            lent = LentGradient(p, (*before.ours, gradient), before.theirs)
        else:
            lent = LentGradient(p, (gradient,), p.grad)
        # In this order: whatever interrupts, what stands in p.grad is in the ledger.
        self.lent[id(p)] = lent
        p.grad = gradient

    def give_back(self) -> None:
        """Every parameter has the user's own gradient again; may be broken off and called again."""
        for lent in self.lent.values():
            if lent.stands:
                lent.to.grad = lent.theirs
        self.lent.clear()
        self.lenders.clear()

    def step_begins(self) -> None:
        """Nothing waits any longer for the end of a step that was broken off."""
        self._waiting.clear()

    def step_ends(
        self, user: int, told: Iterable[Callable[[], None]], before: Callable[[], None]
    ) -> None:
        """Let these be called when the last user is done with the step, whatever one of them does.

        A watcher that ends the training must not keep another memory from holding its weights.
        `before` is called before the first of them, if there is any.
        """
        self._waiting.extend(told)
        if user != next(reversed(self._users), user):
            return
        waiting, self._waiting = self._waiting, []
        if waiting:
            _call_all([before, *waiting])

    def enter(self, user: int, steppers: Iterable[Any]) -> None:
        """See to it that a `step` of these which is broken off gives back too."""
        self._users.setdefault(user)
        for stepper in steppers:
            if id(stepper) not in self._guards and hasattr(stepper, "__dict__"):
                self._guards[id(stepper)] = _Guard(stepper, self.give_back)

    def leave(self, user: int) -> None:
        """Take the guards away after the last user, where nothing was put on top of them."""
        self._users.pop(user, None)
        if not self._users:
            self._guards = {key: g for key, g in self._guards.items() if not g.taken_away()}


class _Guard:
    """An object's `step`, with `afterwards` called whatever happens in it.

    Hooks cannot do that: of a step that is broken off, by Ctrl-C or an error, they hear nothing.
    Only the object itself keeps the guarded step, so that it is not kept alive by it.
    """

    def __init__(self, stepper: Any, afterwards: Callable[[], None]) -> None:
        self._stepper = owner = ref(stepper)
        self._had_its_own = "step" in vars(stepper)  # a scheduler's, for one
        original = vars(stepper)["step"] if self._had_its_own else type(stepper).step
        bound = self._had_its_own

        @wraps(original)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self is not owner():  # a copy, whose steps are its own
                return type(self).step(self, *args, **kwargs)
            # Twice, for the first may be interrupted itself.
            try:
                try:
                    return original(*args, **kwargs) if bound else original(self, *args, **kwargs)
                finally:
                    afterwards()
            finally:
                afterwards()

        self._function = ref(step)
        stepper.step = MethodType(step, stepper)

    def taken_away(self) -> bool:
        """Whether `step` is as it was; not if something else was put around it since."""
        stepper, function = self._stepper(), self._function()
        if stepper is None or function is None or "step" not in vars(stepper):
            return True
        if getattr(vars(stepper)["step"], "__func__", None) is not function:
            return False
        if self._had_its_own:
            stepper.step = vars(function)["__wrapped__"]
        else:
            del stepper.step
        return True


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    """Call each, also after one that raises; of several errors, each is in the last's context."""
    if calls:
        try:
            calls[0]()
        finally:
            _call_all(calls[1:])


_ledgers: WeakKeyDictionary[Optimizer, Ledger] = WeakKeyDictionary()


def ledger_of(optimizer: Optimizer) -> Ledger:
    """The one ledger of an optimizer."""
    return _ledgers.setdefault(optimizer, Ledger())
