"""Observing a model while it serves: its own calls, from any number of threads, one in `every`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, StateError
from retain.header import shown
from retain.local_rule.forward_passes import Passes
from retain.local_rule.observation import Observation
from retain.local_rule.served_call import listen, listen_no_more
from retain.parameters import named_parameters
from retain.samples.calls import served_batch
from retain.samples.owners import padding_said
from retain.saying import warn

Commit = Callable[[dict[str, Tensor], int], None]


class Turns:
    """Whose turn it is to be observed: one call in `every`, over all threads and blocks.

    The first call, then every k-th after it. A call that could not be observed, because it failed
    or because something was met in it for the first time, hands its turn to the next.
    """

    def __init__(self) -> None:
        self.every = 1
        self._calls = 0
        self._owed = 0
        self._lock = threading.Lock()

    def one_in(self, every: int) -> None:
        """Count from the beginning, unless it was one in so many before."""
        with self._lock:
            if every != self.every:
                self.every, self._calls, self._owed = every, 0, 0

    def taken(self) -> bool:
        """Whether the call that begins now is to be observed."""
        with self._lock:
            due = self._calls % self.every == 0
            self._calls += 1
            owed = not due and self._owed > 0
            self._owed -= owed
            return due or owed

    def handed_on(self) -> None:
        """The next call is observed instead of one that was to be."""
        with self._lock:
            self._owed += 1

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()  # locks are of one process


class CallObserver:
    """Observes calls of a model, whatever threads they come from, while a block is open.

    The model runs once, in its own mode, and returns what it always does; nothing that goes wrong
    in observing reaches who is served. It is kept, and warned of when the last block is left. Then,
    for each call whose turn it is, the sums are committed once. The other calls cost nothing.

    At the first call, a layer whose rows cannot be told apart by their shape (a flattened [n·T, …])
    is looked up by running three samples alone, and a weight that is used twice takes a second
    pass: both in a copy that shares the parameters, so that no mode and no buffer of the model
    changes. Where that is not possible (a cache among the arguments must not see calls that nobody
    made) the layer is left out, or the next call is observed instead.
    """

    def __init__(
        self,
        served: nn.Module,
        model: nn.Module,
        passes: Passes,
        commit: Commit,
        *,
        turns: Turns | None = None,
        batch_dim: int = 0,
        padding_mask: str | None = None,
    ) -> None:
        """What is listened to, and who is told.

        Args:
            served: the module that the user calls.
            model: the module in it, if that is compiled or distributed.
            passes: what is known of its layers.
            commit: takes the sums of an observed call, and its number of samples.
            turns: whose turn it is; from the beginning by default.
            batch_dim: the dimension of the inputs that counts samples.
            padding_mask: the name of an input that is True where there is padding.
        """
        self.served = served
        self.model = model
        self.passes = passes
        self.batch_dim = batch_dim
        self.padding_mask = padding_mask
        self.turns = Turns() if turns is None else turns
        self._commit = commit
        self._lock = threading.Lock()
        self._blocks = 0
        self._time = 0  # how often the last block was left: a call belongs to one time
        self._under_way = 0
        self._called = False
        self._to_say: dict[str, None] = {}  # a set in order
        self._settled = False  # whether an observed call met nothing new
        self._parameters: list[nn.Parameter] = []  # of the model, when it was last looked at

    @property
    def open(self) -> bool:
        """Whether any block is open."""
        return self._blocks > 0

    @contextmanager
    def listening(self, *, every: int = 1) -> Iterator[None]:
        """Observe one call in `every` while this block, or any other in any thread, is open.

        Raises:
            InputError: `every` is not a positive whole number.
            StateError: another block is open with another `every`.
        """
        self.enter(every)
        try:
            yield
        finally:
            self.leave()

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Observation | None:
        """What observes the call that begins now, if it is its turn. Never fails."""
        self._called = True
        if not self.turns.taken():
            return None
        try:
            if gone := self._gone():
                self.note(
                    f"calls since {', '.join(gone)} left their place in the model, as when a layer "
                    "is replaced. What was observed is of the model as it was"
                )
                return None
            batch = served_batch(args, kwargs, self.model, batch_dim=self.batch_dim)
            if self.padding_mask is not None:
                named = {str(path[-1]): tensor for path, tensor in batch.inputs().items()}
                batch = replace(batch, padding=padding_said(self.padding_mask, kwargs, named))
            observation = Observation(
                self.passes, self.model, batch, self.note, first=not self._settled
            )
            with self._lock:
                self._under_way += 1
                observation.tell = partial(self._over, self._time)
            return observation
        except InputError as error:
            self.turns.handed_on()
            self.note(str(error).rstrip("."))
        except Exception as error:
            self.note(f"{type(error).__name__}: {error}")
        return None

    def _gone(self) -> list[str]:
        """The wanted parameters that are not where they were, as in a layer that was replaced."""
        now = list(self.model.parameters())
        if len(now) == len(self._parameters) and all(map(is_, now, self._parameters)):
            return []
        found = named_parameters(self.model)
        gone = [name for name, p in self.passes.parameters.items() if found.get(name) is not p]
        if not gone:
            self._parameters = now
        return gone

    def note(self, why: str) -> None:
        """Keep something to be said when the last block is left."""
        self._to_say[why] = None

    def _over(self, time: int, observation: Observation) -> None:
        """An observed call is over; its sums, if it has any, are committed."""
        if observation.again:
            self._settled = False
            self.turns.handed_on()
        with self._lock:
            if time != self._time:
                return  # said when the block was left
            self._under_way -= 1
            if observation.sums is not None:
                self._settled = True
                with torch.inference_mode(False):
                    self._commit(observation.sums, observation.samples)

    def enter(self, every: int) -> None:
        """Begin a block; see `listening`."""
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise InputError(
                f"every={shown(every)}; expected 1 for every call, 2 for every other, and so on."
            )
        with self._lock:
            if self._blocks and every != self.turns.every:
                raise StateError(
                    f"Another block, still open, observes one call in {self.turns.every} of this "
                    f"model, so every={every} is not possible. Use the same every= in both, or "
                    "leave the other block first."
                )
            if not self._blocks:
                self.turns.one_in(every)
                self._called = False
                listen(self.served, self.begin)
            self._blocks += 1

    def leave(self) -> None:
        """End a block; when the last one is left, what went wrong is warned of."""
        with self._lock:
            self._blocks -= 1
            if self._blocks:
                return
            listened = listen_no_more(self.served, self.begin)
            under_way, self._under_way = self._under_way, 0
            self._time += 1
            said, self._to_say = list(self._to_say), {}
        if under_way:
            said.append(f"{under_way} calls that were still running when the last block was left")
        if not listened:
            said.append(
                "calls after the model was compiled in the block. Compile it before, or enter "
                "another block afterwards"
            )
        elif not self._called:
            said.append(
                "the model was not called. If it is called compiled, or by a DataParallel, give "
                "the compiled model, or the DataParallel, to LocalMAS"
            )
        if said:
            warn(f"Not observed while serving: {'; '.join(said)}.")
