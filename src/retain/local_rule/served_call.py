"""The call of a model that serves, while anybody listens to it.

A call is listened to at the one place that `torch.nn.Module` itself leaves out of copies and
pickles and goes through before any hook: where `Module.compile()` puts the compiled call. So a copy
or a pickle made meanwhile knows nothing of it, whatever happens inside a call ends with that call,
also an interrupt (which forward hooks are not told of), and hooks of the user's see what they
always see.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from retain.borrowed import borrowing, eagerly
from retain.local_rule.observation import Bystander, Observation

ForwardCall = Callable[..., Any]
Begin = Callable[[tuple[Any, ...], dict[str, Any]], Observation | None]

CALL = "_compiled_call_impl"  # what Module.__call__ calls, if it is set

_installing = threading.Lock()


def listen(module: nn.Module, begin: Begin) -> None:
    """Ask `begin`, at each call of the module that begins, whether and how it is observed."""
    with _installing:
        call = vars(module).get(CALL)
        if not isinstance(call, ServedCall):
            call = vars(module)[CALL] = ServedCall(module, compiled=call)
        call.listeners += (begin,)


def listen_no_more(module: nn.Module, begin: Begin) -> bool:
    """Do not ask `begin` any more; the module's call is as it was when nobody else listens.

    Returns: whether `begin` was asked until now; not since the module was compiled meanwhile.
    """
    with _installing:
        call = vars(module).get(CALL)
        if not isinstance(call, ServedCall) or begin not in call.listeners:
            return False
        call.listeners = tuple(each for each in call.listeners if each != begin)
        if call.listeners:
            return True
        if call.compiled is None:
            del vars(module)[CALL]
        else:
            vars(module)[CALL] = call.compiled
        return True


class ServedCall:
    """Stands in for a model's call while anybody listens; returns what the model returns."""

    def __init__(self, module: nn.Module, compiled: ForwardCall | None) -> None:
        self.compiled = compiled
        self.listeners: tuple[Begin, ...] = ()
        self._plain: ForwardCall = module._call_impl if compiled is None else compiled
        self._process = os.getpid()
        self._thread = threading.local()

    # A copy of a model is not observed, also one that was made of what is in `vars(model)`.

    def __deepcopy__(self, _memo: dict[int, Any]) -> ForwardCall | None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, observed or not."""
        if self._not_served():
            return self._plain(*args, **kwargs)
        self._thread.inside = True
        try:
            begun = [begin(args, kwargs) for begin in self.listeners]
            observed = [each for each in begun if each is not None]
            if not observed:
                return self._plain(*args, **kwargs)
            return self._observed(observed, args, kwargs)
        finally:
            self._thread.inside = False

    def _not_served(self) -> bool:
        """Whether this is no call of who is served."""
        return (
            getattr(self._thread, "inside", False)  # the model calls itself
            or borrowing()
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or os.getpid() != self._process
        )

    def _observed(
        self, observed: list[Observation], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        watch = Bystander(observed)
        with ExitStack() as always:
            for each in observed:
                always.callback(each.over)
            with ExitStack() as meanwhile:
                try:
                    meanwhile.enter_context(eagerly())
                except RuntimeError as error:  # it runs inside of what is being compiled
                    watch.failed = error
                meanwhile.enter_context(watch)
                returned = self._plain(*args, **kwargs)
            watch.answered(returned)
            for each in observed:
                each.answered(watch.failed)
            return returned
