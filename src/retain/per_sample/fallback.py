"""What is said about the parameters that no closed form serves: why, what it costs, what to do."""

from __future__ import annotations

from collections.abc import Iterable

DIFFERS = "their batched gradients differ from those of single samples"
INSEPARABLE = "no operation gives their gradients separately for each sample"
UNASKABLE = "they are used inside an operation whose backward cannot be run for a single sample"
SIDE_DOOR = "their gradients come from a backward() that another backward calls"
HOOKED = "a hook on their gradient depends on more than each element"
WRITTEN = "a forward writes to weights that the outputs of other samples then depend on"
LOOKED_AT = (
    "which rows belong to which sample cannot be known in advance, so every batch is probed in "
    "extra passes"
)
WRITES = "a forward writes to {}, and what that changes is looked for in every batch"
ASKED = "the hooks on the gradients of {} are tried on every batch"
MANY_USES = "a sample uses {} {} times, and its gradient is the sum of them all"
MUCH_AROUND = "its operations are small, and the work around each takes longer than they do"
DEAR = "taking one sample at a time is the quickest way"
REMEDY = "If that is too slow, observe fewer samples (max_samples=…) or leave them out (exclude=…)."
UNUSED, NO_GRADIENT = "unused", "no gradient"  # not in the graph; in it, but nothing arrived
WITHOUT_GRADIENT = (UNUSED, NO_GRADIENT)


def some(names: Iterable[str]) -> str:
    """The first few of the names."""
    every = sorted(names)
    listed = ", ".join(f"'{name}'" for name in every[:5])
    return listed + (f" and {len(every) - 5} more" if len(every) > 5 else "")
