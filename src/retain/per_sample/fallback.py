"""What is said about the parameters that no closed form serves: why, what it costs, what to do."""

from __future__ import annotations

from collections.abc import Iterable

DIFFERS = "their batched gradients differ from those of single samples"
INSEPARABLE = "no operation shows their gradients apart for each sample"
UNASKABLE = "they are used inside an operation whose backward cannot be asked for a single sample"
SIDE_DOOR = "their gradients come from a backward() that another backward calls"
HOOKED = "a hook on their gradient depends on more than each element"
WRITTEN = "a forward writes to weights that the outputs of other samples then depend on"
LOOKED_AT = (
    "which rows belong to which sample cannot be known before, so that every batch is looked at "
    "in passes of its own"
)
WRITES = "a forward writes to {}, and for every batch it is looked at what that changes"
ASKED = "the hooks on the gradients of {} are asked about every batch"
MANY_USES = "a sample uses {} {} times, and its gradient is the sum of them all"
MUCH_AROUND = "its operations are small, and what is done around each takes longer than they do"
DEAR = "one pass of a single sample at a time is quicker than what else there is"
REMEDY = "If that is too slow, observe fewer samples (max_samples=…) or leave them out (exclude=…)."
UNUSED, NO_GRADIENT = "unused", "no gradient"  # not in the graph; in it, but nothing arrived
WITHOUT_GRADIENT = (UNUSED, NO_GRADIENT)


def some(names: Iterable[str]) -> str:
    """The first few of the names."""
    every = sorted(names)
    listed = ", ".join(f"'{name}'" for name in every[:5])
    return listed + (f" and {len(every) - 5} more" if len(every) > 5 else "")
