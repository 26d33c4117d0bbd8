"""What is said about the parameters that no closed form serves: why, what it costs, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from retain.saying import warn

DIFFERS = "their batched gradients differ from those of single samples"
INSEPARABLE = "no operation shows their gradients apart for each sample"
UNASKABLE = "they are used inside an operation whose backward cannot be asked for a single sample"
SIDE_DOOR = "their gradients come from a backward() that another backward calls"
HOOKED = "a hook on their gradient depends on more than each element"
WRITTEN = "the model writes to weights that the outputs of the other samples then depend on"
WRITTEN = "a forward writes to weights that the outputs of other samples then depend on"
DEAR = "one pass of a single sample at a time is quicker than what else there is"
REMEDY = "If that is too slow, observe fewer samples (max_samples=…) or leave them out (exclude=…)."
UNUSED, NO_GRADIENT = "unused", "no gradient"  # not in the graph; in it, but nothing arrived
WITHOUT_GRADIENT = (UNUSED, NO_GRADIENT)
CHEAP = 3.0  # plain passes: what costs more is said
SHORT = 5e-3  # seconds: what a batch may take without a word, whatever it is compared with
LONG = 0.2  # seconds: what takes less is not worth looking for another way
WARM = 2.0  # seconds: what takes less is timed once more when it is warm
SLOW_ROUTES = ("masked", "pulled back", "one by one")


def some(names: Iterable[str]) -> str:
    """The first few of the names."""
    every = sorted(names)
    listed = ", ".join(f"'{name}'" for name in every[:5])
    return listed + (f" and {len(every) - 5} more" if len(every) > 5 else "")


class Prices:
    """Says once of each parameter that it takes a dear way."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all of them were told about."""
        return self._told.issuperset(names)

    def looped(self, reasons: Mapping[str, str], passes: float, samples: int) -> None:
        """Warn that these parameters, with these reasons, are looped over."""
        fresh = {name: reason for name, reason in reasons.items() if name not in self._told}
        self._told.update(fresh)
        for reason in dict.fromkeys(fresh.values()):
            names = some(name for name, own in fresh.items() if own == reason)
            warn(
                f"The importance of {names} is computed one sample at a time, because {reason}. "
                f"That is exact, but for this batch of {samples} samples it took about "
                f"{passes:.1f} times as long as a plain forward and backward pass. {REMEDY}"
            )

    def slow(self, routes: Mapping[str, str], passes: float, samples: int) -> None:
        """Warn if a batch costs more than is cheap, and these are the slow routes in it."""
        fresh = [n for n in slow_routes(routes) if n not in self._told]
        if not passes > CHEAP or not fresh:
            return
        self._told.update(fresh)
        ways = sorted({routes[name] for name in fresh})
        warn(
            f"The importance of {some(fresh)} has no closed form (way: {'; '.join(ways)}): "
            f"an operation of the model is asked for each sample in turn. That is exact, but this "
            f"batch of {samples} samples took about {passes:.1f} times as long as a plain forward "
            f"and backward pass. {REMEDY}"
        )


def slow_routes(routes: Mapping[str, str]) -> list[str]:
    """The names of the parameters that take a way which asks for each sample in turn."""
    slow = {route for route in set(routes.values()) if any(part in route for part in SLOW_ROUTES)}
    return [name for name, route in routes.items() if route in slow] if slow else []
