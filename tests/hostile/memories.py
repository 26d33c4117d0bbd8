"""Files of memories, importance and passports, damaged and forged, by all that read them.

python -m tests.hostile.memories --count 10000

Damaged are bytes: such a file is refused, or what is read is what was written. Forged is what is in
it, with a digest that fits: such a file is refused, or what is read can be used, to the end of a
protected step.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import retain
from retain import files
from retain.errors import RetainError
from retain.memory.memory_file import read_importance
from retain.passports import Passport
from tests.hostile.values import FORGED, Tally, changed, damaged

WRITTEN = {"kind", "format", "torch"}  # fields that `files.write` sets by itself


def network() -> nn.Module:
    """A model with a bias, a matrix and a convolution."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def memory_of(model: nn.Module, kind: str) -> Any:
    """A memory that has something of everything in it."""
    data = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    memory = {
        "MAS": lambda: retain.MAS(model, strength=2.0),
        "EWC": lambda: retain.EWC(model, seed=3),
        "LocalMAS": lambda: retain.LocalMAS(model, dtype=torch.bfloat16),
    }[kind]()
    memory.observe(data, progress=False).consolidate()
    return memory.observe(data[:4], progress=False)


Reader = Callable[[Path], Any]


def _used(path: Path) -> list[Tensor]:
    """The memory in a file, and what a protected step with it makes of a model."""
    model = network()
    memory = retain.load(path, model)
    if memory.observed.samples:
        memory.consolidate()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    memory.attach(optimizer, form="proximal")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return [p.detach() for p in model.parameters()]


READERS: dict[str, tuple[Reader, ...]] = {
    "memory": (lambda path: retain.load(path, network()).state_dict(), read_importance),
    "importance": (lambda path: dict(retain.Importance.load(path)), read_importance),
    "passport": (
        lambda path: retain.load(path, network()).state_dict(),
        lambda path: str(Passport.load(path)),
        read_importance,
    ),
}


def written(folder: Path) -> list[tuple[str, Path]]:
    """A file of every kind."""
    found = []
    for kind in ("MAS", "EWC", "LocalMAS"):
        memory_of(network(), kind).save(folder / f"{kind}.safetensors")
        found.append(("memory", folder / f"{kind}.safetensors"))
    memory_of(network(), "MAS").importance.save(folder / "omega.safetensors")
    model = network()
    batches = [torch.randn(4, 1, 4, 4) for _ in range(2)]
    retain.passport(model, batches, progress=False).save(folder / "passport.safetensors")
    return [
        *found,
        ("importance", folder / "omega.safetensors"),
        ("passport", folder / "passport.safetensors"),
    ]


def try_files(count: int, seed: int, folder: Path) -> Tally:
    """So many mutants, of every kind of file in turn."""
    dice, tally, sources = random.Random(seed), Tally(), written(folder)
    mutant = folder / "mutant.safetensors"
    truths = {path: [read(path) for read in READERS[kind]] for kind, path in sources}
    for number in range(count):
        kind, source = sources[number % len(sources)]
        forging = dice.random() < 0.5
        if forging:
            _forge(kind, source, mutant, dice)
        else:
            mutant.write_bytes(damaged(source.read_bytes(), dice))
        for read, truth in zip(READERS[kind], truths[source], strict=True):
            try:
                found = read(mutant)
                usable = kind != "memory" or all(w.isfinite().all() for w in _used(mutant))
            except RetainError:
                tally["refused"] += 1
            except Exception:
                tally.surprise("foreign traceback", traceback.format_exc(limit=-3))
            else:
                if not usable:
                    tally.surprise("weights that are not finite", f"{kind} {number}")
                elif _same(found, truth):
                    tally["accepted unchanged"] += 1
                elif forging:
                    tally[FORGED] += 1
                else:
                    tally.surprise("accepted with another value", f"{kind} {number}")
    return tally


def _forge(kind: str, source: Path, target: Path, dice: random.Random) -> None:
    """The same file with a field or a tensor replaced, and a digest that fits."""
    tensors, header = files.read(source, kind)
    header = {name: value for name, value in header.items() if name not in WRITTEN}
    if dice.random() < 0.6:
        header = changed(copy.deepcopy(header), dice)
    else:
        name = dice.choice(sorted(tensors))
        tensors[name] = _another(tensors[name], dice)
        if tensors[name] is None:
            del tensors[name]
    if not isinstance(header, dict):
        header = {"header": header}
    try:
        files.write(target, kind, tensors, header)
    except (ValueError, TypeError, RecursionError):  # JSON cannot hold it: nobody can forge it so
        target.write_bytes(source.read_bytes())


def _another(tensor: Tensor, dice: random.Random) -> Any:
    """A tensor that should not be in its place."""
    real = tensor.float()
    choices: list[Callable[[], Any]] = [
        lambda: -real.abs() - 1,
        lambda: torch.full_like(real, torch.nan),
        lambda: torch.full_like(real, torch.inf),
        lambda: tensor.int(),
        lambda: tensor.bool(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.reshape(-1)[:1],
        lambda: tensor.reshape(1, *tensor.shape),
        lambda: tensor.new_zeros(0),
        lambda: real * 1e30,
        lambda: None,
    ]
    return dice.choice(choices)()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (retain.Importance, dict)) and isinstance(other, (retain.Importance, dict)):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def main() -> None:
    """Try so many, and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        tally = try_files(given.count, given.seed, Path(folder))
    print(
        f"files: tried {given.count:,}, each by all its readers; {tally.line()}",
        *tally.kept,
        sep="\n",
    )


if __name__ == "__main__":
    main()
