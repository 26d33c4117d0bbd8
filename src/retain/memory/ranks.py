"""Several processes of torch.distributed: what each of them observed, added up on all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from retain.errors import RetainError, StateError
from retain.importance import Importance, combined
from retain.saying import warn

SHOWN = 4  # names of parameters in a message


def several() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def own_samples(data: object) -> int | None:
    """How many samples of a loader are this rank's own; None if all are.

    A `DistributedSampler` gives every rank as many, and repeats the first samples to that end: they
    come last, and would count twice.
    """
    sampler = data.sampler if isinstance(data, DataLoader) else None
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    everything = len(sampler.dataset)  # type: ignore[arg-type]
    return max(0, -(-(everything - sampler.rank) // sampler.num_replicas))


def of_all_ranks(
    observe: Callable[[], Importance],
    parameters: Mapping[str, Tensor],
    settings: Mapping[str, object],
) -> Importance:
    """The mean over the samples of all ranks, the same on each. All of them have to call it.

    Args:
        observe: what this rank observed, which may be nothing; or raises.
        parameters: those of this rank's model, by name.
        settings: what else has to be the same on all ranks.

    Raises:
        StateError: a rank has another model or other settings, or failed, or did not come.
        RetainError: what `observe` raised here.
    """
    problem: RetainError | None = None
    mine = Importance({}, 0)
    try:
        mine = observe()
    except RetainError as error:
        problem = error
    said = {
        "problem": None if problem is None else str(problem),
        "model": {name: tuple(p.shape) for name, p in parameters.items()},
        "settings": dict(settings),
        "samples": mine.samples,
        "wide": [name for name, omega in mine.items() if omega.dtype == torch.float64],
        "routes": {name: mine.routes.get(name) for name in mine},
        "squared_norm": mine.squared_norm,
        "precisions": mine.precisions,
    }
    everyone = _gathered(said)
    if problem is not None:
        raise problem
    _refuse_disagreement(everyone)
    total = _total_of_samples(everyone)
    if total == 0:
        return mine
    routes = {name: route for one in everyone for name, route in one["routes"].items()}
    wide = {name for one in everyone for name in one["wide"]}
    means = {}
    for name in routes:
        dtype = torch.float64 if name in wide else torch.float32
        # Ω = Σ_ranks n Ω / Σ_ranks n
        own = mine.get(name, torch.zeros((), dtype=dtype, device=parameters[name].device))
        part = own.to(dtype).expand(parameters[name].shape) * mine.samples
        means[name] = _added(part.contiguous()).div_(total)
    norm = combined(*((one["squared_norm"], one["samples"] / total) for one in everyone))
    known = {name: route for name, route in routes.items() if route}
    every = (precision for one in everyone for precision in one["precisions"])
    return Importance(means, total, known, norm, every)


def _gathered(said: dict[str, Any]) -> list[dict[str, Any]]:
    everyone: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(everyone, said)
    except RuntimeError as error:
        raise _nobody_came(error) from error
    return everyone


def _added(part: Tensor) -> Tensor:
    """Σ over the ranks, where `part` is."""
    there = part
    if part.device.type == "cpu" and dist.get_backend() == "nccl":
        there = part.cuda()
    try:
        dist.all_reduce(there)
    except RuntimeError as error:
        raise _nobody_came(error) from error
    return there.to(part.device)


def _nobody_came(error: RuntimeError) -> StateError:
    return StateError(
        f"consolidate() adds up what all {dist.get_world_size()} ranks observed, and one of them "
        f"did not come: {error}. Call it equally often on every rank, and see whether one died."
    )


def _refuse_disagreement(everyone: list[dict[str, Any]]) -> None:
    failed = [f"rank {r}: {one['problem']}" for r, one in enumerate(everyone) if one["problem"]]
    if failed:
        raise StateError(f"consolidate() failed on {'; '.join(failed)}")
    first = everyone[0]
    for rank, one in enumerate(everyone):
        said = [
            f"{name} is {first['settings'].get(name)!r} on rank 0 and {value!r} on rank {rank}"
            for name, value in one["settings"].items()
            if value != first["settings"].get(name)
        ]
        ours, theirs = first["model"], one["model"]
        names = [*ours, *(name for name in theirs if name not in ours)]
        other = [name for name in names if ours.get(name) != theirs.get(name)]
        if other:
            shown = [f"{n} {ours.get(n)} and {theirs.get(n)}" for n in other[:SHOWN]]
            more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
            said.append(f"the models of ranks 0 and {rank} differ in {', '.join(shown)}{more}")
        if said:
            raise StateError(
                f"The ranks disagree: {'; '.join(said)}. Make the memory in the same way on all of "
                "them. Nothing was consolidated."
            )


def _total_of_samples(everyone: list[dict[str, Any]]) -> int:
    samples = [int(one["samples"]) for one in everyone]
    idle = [str(rank) for rank, n in enumerate(samples) if n == 0]
    if idle and len(idle) < len(samples) and dist.get_rank() == 0:
        warn(
            f"Of {len(samples)} ranks, {', '.join(idle)} observed nothing: Ω covers only the "
            "samples of the others."
        )
    return sum(samples)
