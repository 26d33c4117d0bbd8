"""A batch that does not fit into memory goes in halves; its sums are the same."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from retain.errors import OutOfMemoryError
from retain.samples.batches import Batch
from retain.saying import warn

Sums = dict[str, Tensor]
# How PyTorch's allocators, and the libraries below it, say it where they have no class for it.
SAYING_SO = re.compile(r"can't allocate memory|out of memory|ALLOC_FAILED|NOT_ENOUGH_MEMORY", re.I)


class Halving:
    """Sums over the samples of a batch, of as many at once as there turns out to be memory for.

    What did not fit is remembered: later batches begin with as many as did.
    """

    def __init__(self) -> None:
        self.most: int | None = None  # samples at once; None: whatever comes

    def __call__(self, sums_of: Callable[[Batch], Sums], batch: Batch) -> Sums:
        """What `sums_of` gives for the batch, whole or added up over its parts.

        Raises:
            OutOfMemoryError: one sample alone does not fit.
        """
        total: Sums = {}
        start = 0
        while start < batch.samples:
            size = batch.samples if self.most is None else self.most
            stop = min(batch.samples, start + size)
            part = batch if stop - start == batch.samples else batch.take(start, stop)
            told = None
            try:
                found = sums_of(part)
            except Exception as error:
                told = shortage(error)
                if told is None:
                    raise
            if told is not None:  # the error is gone here, and what its frames held with it
                self._fewer(stop - start, told, total.values())
                continue
            if stop - start == batch.samples:
                return found
            if not total:  # the next part is summed where these are
                total = {name: value.clone() for name, value in found.items()}
            else:
                torch._foreach_add_(list(total.values()), [found[name] for name in total])
            start = stop
        return total

    def _fewer(self, samples: int, told: str, held: Iterable[Tensor]) -> None:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if samples == 1:
            raise OutOfMemoryError(
                f"Even one sample does not fit into memory ({told}). Nothing of this batch was "
                "counted. Free some memory, keep Ω and θ* elsewhere (device='cpu') or smaller "
                "(dtype=torch.bfloat16), leave parameters out with exclude=…, or observe on "
                "another device."
            )
        if self.most is None:
            warn(
                f"Out of memory with {samples} samples at once ({told}): going on with "
                f"{(samples + 1) // 2}. Ω does not change."
            )
        self.most = (samples + 1) // 2


def shortage(error: BaseException | None) -> str | None:
    """What was said about memory, by the error or by what led to it; None if it is another one."""
    while error is not None:
        said = str(error).strip()
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if short or (isinstance(error, RuntimeError) and SAYING_SO.search(said)):
            figure = re.search(r"tried to allocate ([\d.]+ ?\w+)", said, re.I)
            return (
                f"tried to allocate {figure[1]}" if figure else said[:200] or "no figure was given"
            )
        error = error.__cause__ or error.__context__
    return None
