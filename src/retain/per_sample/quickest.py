"""Which of several ways to the same numbers is the quickest here: measured once, and kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping

import torch

from retain.per_sample.devices import wait

REMEMBERED = 4096  # answers that are remembered
TIMED = 2  # calls of which the quicker counts, since a machine has other things to do
MORE, AT_LEAST = 8, 1e-3  # calls, of which there are more until they took so many seconds together
HOPELESS = 10.0  # times as long as another way, and be it for the first time

_answers: dict[Hashable, str] = {}


def quickest(of: Hashable, ways: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    """The name of the quickest way; `of` says what it is about: the operation and its shapes.

    A way that fails, or needs more memory than there is, is not chosen while another works.
    """
    about = (device, of, *ways)  # fewer samples may have more ways
    if about not in _answers:
        while len(_answers) >= REMEMBERED:
            del _answers[next(iter(_answers))]
        seconds: dict[str, float] = {}
        for name, way in ways.items():
            seconds[name] = _seconds(way, device, min(seconds.values(), default=math.inf))
        _answers[about] = min(seconds, key=seconds.__getitem__)
    return _answers[about]


def _seconds(way: Callable[[], object], device: torch.device, best: float) -> float:
    """What later calls take at least: the first one loads code and finds memory.

    One that takes far longer than the best so far is not asked again.
    """
    taken: list[float] = []
    try:
        while len(taken) <= TIMED or (len(taken) < MORE and sum(taken) < AT_LEAST):
            begin = time.perf_counter()
            way()
            wait(device)
            taken.append(time.perf_counter() - begin)
            if taken[-1] > HOPELESS * best:
                return taken[-1]
    except RuntimeError:
        return math.inf
    return min(taken[1:])
