"""Files of weights, damaged and forged, by what reads them: repair, forecast, a model's start.

Damaged are bytes: such a file is refused, or what is read is what was written. Forged are tensors
of other types, shapes, layouts and numbers, other objects in their place, and code: such a file is
refused, or what comes of it is finite. No code runs.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import retain
from retain import files
from retain.errors import RetainError
from retain.models.weights import load_weights, read_state
from tests.hostile.memories import memory_of, network
from tests.hostile.values import FORGED, VALUES, Tally, damaged

RAN = "ran"  # the file that a pickle would make


class Runs:
    """An object that is code as soon as it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (RAN,)


def try_weights(count: int, seed: int, folder: Path) -> Tally:
    """So many mutants of a torch file and of a safetensors file in turn."""
    dice, tally = random.Random(seed), Tally()
    memory = memory_of(network(), "MAS").consolidate()
    whole = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    sources = [folder / "whole.pt", folder / "whole.safetensors"]
    torch.save(whole, sources[0])
    files.write_weights(sources[1], whole)
    for number in range(count):
        source = sources[number % 2]
        mutant, forging = folder / f"mutant{source.suffix}", dice.random() < 0.6
        if not forging:
            mutant.write_bytes(damaged(source.read_bytes(), dice))
        elif not _forge(whole, mutant, dice):
            tally["tried"] -= 1
            continue
        for read in (_repaired, _forecast, _started):
            kind = _outcome(read, (mutant, memory, whole), forging, tally)
            if kind is not None:
                tally[kind] += 1
    tally["tried"] = sum(tally[kind] for kind in tally if kind != "tried")
    if Path(RAN).exists():
        tally.surprise("code ran", "of a pickle")
    return tally


def _outcome(
    read: Callable[..., list[Tensor]], given: tuple[Any, ...], forging: bool, tally: Tally
) -> str | None:
    """How it ended; a surprise is counted already."""
    try:
        found = read(*given)
    except RetainError:
        return "refused"
    except Exception:
        return tally.surprise("foreign traceback", traceback.format_exc(limit=-3))
    if not all(bool(tensor.double().isfinite().all()) for tensor in found):
        return tally.surprise("weights that are not finite", read.__name__)
    if forging:
        return FORGED
    if all(torch.equal(a, b) for a, b in zip(found, read(None, *given[1:]), strict=True)):
        return "accepted unchanged"
    return tally.surprise("accepted with another value", read.__name__)


def _read(path: Path | None, whole: dict[str, Tensor]) -> dict[str, Tensor]:
    return copy.copy(whole) if path is None else read_state(path)


def _repaired(path: Path | None, memory: Any, whole: dict[str, Tensor]) -> list[Tensor]:
    moved = {name: tensor + 0.1 for name, tensor in whole.items()}
    mended = retain.repair(_read(path, whole), moved, memory.importance)
    back = retain.repair(moved, _read(path, whole), memory.importance)
    files.write_weights(Path("mended.safetensors"), back)
    return [*(mended[name] for name in whole), *(back[name] for name in whole)]


def _forecast(path: Path | None, memory: Any, whole: dict[str, Tensor]) -> list[Tensor]:
    return [torch.tensor(memory.forecast(_read(path, whole)).change, dtype=torch.float64)]


def _started(path: Path | None, _memory: Any, whole: dict[str, Tensor]) -> list[Tensor]:
    model = network()
    if path is not None:
        load_weights(model, path)
    return list(model.state_dict().values())


def _forge(whole: dict[str, Tensor], target: Path, dice: random.Random) -> bool:
    """A file with something else in it; False where torch itself cannot write it."""
    state: dict[Any, Any] = dict(whole)
    name = dice.choice([*state, "another", "caf\udce9", 3, ("a", 1)])
    tensor = state.get(name, torch.ones(3, 2))
    what = dice.random()
    if what < 0.6:
        state[name] = dice.choice(_ODD)(tensor)
    elif what < 0.75:
        state[name] = dice.choice(VALUES)
    elif what < 0.85:
        state.pop(name, None)
    whole_file: Any = state if what < 0.85 else dice.choice(_INSTEAD)(state)
    try:
        if target.suffix == ".safetensors":
            files.write_weights(target, whole_file)
        elif what > 0.97:
            _bomb(target)
        else:
            torch.save(whole_file, target)
    except Exception:  # nobody can make such a file so
        return False
    return True


def _bomb(target: Path) -> None:
    """A file that is larger when it is unpacked."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}))
        archive.writestr("bomb/version", "3\n")
        archive.writestr("bomb/data/0", bytes(1 << 22))


_ODD: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t * torch.nan,
    lambda t: t * torch.inf,
    lambda t: t * 1e30,
    lambda t: t.int(),
    lambda t: t.bool(),
    lambda t: t.half(),
    lambda t: t.double() * 1e200,
    lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.float8_e4m3fn),
    lambda t: t.to(torch.float8_e5m2),
    lambda t: t.reshape(-1)[:1],
    lambda t: t.reshape(1, *t.shape),
    lambda t: t.new_zeros(0),
    lambda t: torch.zeros(1).expand(10**6, 10**6),
    lambda t: t.to_sparse(),
    lambda t: t.to("meta"),
    lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8),
    lambda t: torch.nested.nested_tensor([t, t]),
    lambda t: t.view(torch.bits8) if t.element_size() == 1 else t.byte().view(torch.bits8),
    lambda t: nn.Parameter(t),
    lambda t: nn.parameter.UninitializedParameter(),
    lambda t: Runs(),
)
_INSTEAD: tuple[Callable[[Any], Any], ...] = (
    lambda state: [state],
    lambda state: {"state_dict": state},
    lambda state: {"state_dict": {"model": state}},
    lambda state: {},
    lambda state: None,
    lambda state: nn.Linear(2, 2),
    lambda state: {**state, "code": Runs()},
    lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    lambda state: Runs(),
)
