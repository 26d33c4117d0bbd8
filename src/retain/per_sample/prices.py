"""What a batch costs, in plain forward and backward passes, and what is said if that is dear.

Short batches are timed several times, of which the quickest counts: whatever else goes on only ever
adds to what one takes. What surrounds a batch, however small it is, counts for nothing: see AROUND.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from retain.per_sample.devices import wait
from retain.per_sample.fallback import REMEDY, WITHOUT_GRADIENT, some
from retain.saying import warn

CHEAP = 3.0  # plain passes: what costs more is said
AROUND = 1.5e-3  # seconds that a pass may take beyond that without a word, whatever it is
LONG = 0.2  # seconds: what takes less is not worth looking for another way
WARM = 2.0  # seconds: what takes less is timed once more when it is warm
ROUNDS = 6  # further timings, at most, of what does not take long
FEW = 3  # plain passes that are timed, if they do not take long
KINDS = 8  # of batches that are always timed; of later ones as many as SHARE allows
SHARE = 0.05  # of all the time that batches took
SLOW_ROUTES = ("masked", "pulled back", "one by one")


def slow_routes(routes: Mapping[str, str]) -> list[str]:
    """The names of the parameters that take a way which asks for each sample in turn."""
    slow = {route for route in set(routes.values()) if any(part in route for part in SLOW_ROUTES)}
    return [name for name, route in routes.items() if route in slow] if slow else []


@dataclass(frozen=True)
class Price:
    """What a batch takes, and a plain forward with a backward for each score, in seconds."""

    seconds: float
    plain: float
    scores: int = 1  # per sample

    @property
    def passes(self) -> float:
        """The price in plain passes."""
        return self.seconds / self.plain

    @property
    def dear(self) -> bool:
        """Whether it is more than cheap."""
        return self.seconds - CHEAP * self.plain > AROUND * self.scores

    @classmethod
    def at_most(cls, seconds: float, forward: float, scores: int, *, whole: bool) -> Price:
        """Not less than the price of a batch of which the forward pass took so long.

        A backward pass, for each score, takes as long as a forward at least, if it goes through the
        `whole` model; one that ends in its last layers may take no time at all.
        """
        return cls(seconds, forward * (1 + scores) if whole else forward, scores)

    @classmethod
    def measured(
        cls, seconds: float, plain: Callable[[], float], again: Callable[[], float], scores: int = 1
    ) -> Price:
        """The price of a batch that took `seconds`: if that seems dear, of later and warm turns.

        `plain` and `again` say how long a plain pass took, and another turn.
        """
        price = cls(seconds, usual(plain), scores)
        for turn in range(ROUNDS):
            long = price.seconds > WARM or (turn > 0 and price.seconds > LONG)
            if not price.dear or long:
                break
            # the two by turns, so that both meet the same machine
            price = cls(min(price.seconds, again()), min(price.plain, plain()), scores)
        return price


def usual(plain: Callable[[], float]) -> float:
    """The seconds that a plain pass takes: of several, the quickest, if they are short."""
    taken: list[float] = []
    while not taken or (len(taken) < FEW and sum(taken) < LONG):
        taken.append(plain())
    return min(taken)


def seconds_on(device: torch.device) -> float:
    """A clock: on a CPU the time of this thread, which other programs cannot stretch."""
    if device.type == "cpu":
        return time.thread_time()
    wait(device)
    return time.perf_counter()


class Prices:
    """Says once of each parameter that it takes a dear way."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._looked: set[int] = set()  # kinds of batches that were timed
        self._looking, self._all = 0.0, 0.0  # seconds that this took, and all batches together

    def due(self, kind: int, seconds: float) -> bool:
        """Whether to look at the price of a batch of this kind, which took so long: once."""
        self._all += seconds
        if kind in self._looked:
            return False
        if len(self._looked) >= KINDS and self._looking > SHARE * self._all:
            return False
        self._looked.add(kind)
        return True

    def look(
        self, seconds: float, plain: Callable[[], float], again: Callable[[], float], scores: int
    ) -> Price:
        """The price of a batch that took `seconds`."""
        start = time.perf_counter()
        price = Price.measured(seconds, plain, again, scores)
        self._looking += time.perf_counter() - start
        return price

    def looped(
        self, reasons: Mapping[str, str], seconds: float, plain: Callable[[], float], samples: int
    ) -> None:
        """Warn that these parameters, with these reasons, are looped over, in so many seconds."""
        fresh = {name: reason for name, reason in reasons.items() if name not in self._told}
        if not fresh:
            return
        self._told.update(fresh)
        passes = seconds / usual(plain)
        for reason in dict.fromkeys(fresh.values()):
            names = some(name for name, own in fresh.items() if own == reason)
            warn(
                f"The importance of {names} is computed one sample at a time, because {reason}. "
                f"That is exact, but for this batch of {samples} samples it took about "
                f"{passes:.1f} times as long as a plain forward and backward pass. {REMEDY}"
            )

    def dear(self, routes: Mapping[str, str], price: Price, samples: int, why: str) -> None:
        """Warn that a batch is dear: for its slow routes, if it has any, or `why`."""
        slow = slow_routes(routes)
        concerned = slow or [n for n, route in routes.items() if route not in WITHOUT_GRADIENT]
        fresh = [name for name in concerned if name not in self._told]
        if not fresh:
            return
        self._told.update(fresh)
        ways = "; ".join(sorted({routes[name] for name in fresh}))
        cause = (
            f"has no closed form (way: {ways}): the backward of an operation is run for each "
            "sample in turn"
            if slow
            else f"is expensive, although it has a closed form (way: {ways}): {why}"
        )
        warn(
            f"The importance of {some(fresh)} {cause}. That is exact, but this batch of {samples} "
            f"samples took about {price.passes:.1f} times as long as a plain forward and backward "
            f"pass. {REMEDY}"
        )
