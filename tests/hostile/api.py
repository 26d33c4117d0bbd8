"""Every argument of everything public, given what nobody should give; made from the signatures.

python -m tests.hostile.api --count 500
"""

from __future__ import annotations

import argparse
import inspect
import os
import random
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retain
from retain.errors import RetainError
from tests.hostile.values import VALUES, Tally

ODD: tuple[Any, ...] = (
    *VALUES, object(), int, len, nn.Linear, nn.Linear(2, 2), nn.Linear(2, 2, device="meta"),
    torch.ones(3), torch.ones(0), torch.tensor(True), torch.float8_e5m2, torch.int32, torch.float16,
    torch.device("meta"), "cuda:99", "cpu", b"x", Path("/nowhere/at/all"), 1j, range(3), lambda: 1,
    lambda *_: "x", iter([]), {"a": torch.ones(2)}, retain.Importance({}, 0), slice(None),
)  # fmt: skip
OWN = ("train", "loss", "output")
Call = Callable[..., Any]


def network() -> nn.Module:
    """A small model."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def data() -> list[Any]:
    """Two batches with labels."""
    return [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1])) for _ in range(2)]


def consolidated(model: nn.Module | None = None) -> retain.MAS:
    """A memory that protects."""
    return retain.MAS(model or network()).observe(data(), progress=False).consolidate()


def targets(folder: Path) -> list[tuple[str, Call, dict[str, Any]]]:
    """What is called, and arguments with which it works: name, how it is made, arguments."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = consolidated(model)
    memory.save(folder / "memory.safetensors")
    memory.importance.save(folder / "omega.safetensors")
    kinds = (retain.MAS, retain.LocalMAS, retain.EWC, retain.SI)
    made: list[tuple[str, Call, dict[str, Any]]] = [
        (kind.__name__, kind, {"model": network()}) for kind in kinds
    ]
    made += [
        ("observe", retain.MAS(network()).observe, {"data": data()}),
        ("consolidate", _ready().consolidate, {}),
        ("attach", consolidated(model).attach, {"optimizer": optimizer}),
        ("check", memory.check, {}),
        ("forecast", memory.forecast, {"other": data()}),
        ("save", memory.save, {"path": folder / "again.safetensors"}),
        ("load_state_dict", consolidated().load_state_dict, {"state": memory.state_dict()}),
        ("load", retain.load, {"path": folder / "memory.safetensors", "model": network()}),
        ("Importance.load", retain.Importance.load, {"path": folder / "omega.safetensors"}),
        ("Importance.pool", retain.Importance.pool, {"parts": [memory.importance]}),
        ("repair", retain.repair, {"base": model, "tuned": network(), "memory": memory}),
        ("passport", retain.passport, {"model": network(), "data": data()}),
        ("frozen_statistics", retain.frozen_statistics, {"model": network()}),
        ("choose_strength", retain.choose_strength, {"train": lambda _: 0.5, "start": 1.0}),
    ]  # fmt: skip
    return made


def _ready() -> retain.MAS:
    return retain.MAS(network()).observe(data(), progress=False)


def try_calls(count: int, seed: int, folder: Path) -> Tally:
    """So many calls, each with one argument replaced."""
    dice, tally = random.Random(seed), Tally()
    places = [
        (index, name)
        for index, (_, call, _) in enumerate(targets(folder))
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    for number in range(count):
        index, name = places[number % len(places)]
        value = dice.choice(ODD)
        what, call, given = targets(folder)[index]
        if name in OWN and callable(value):
            continue  # what a user's own function raises is the user's
        said = f"{what}({name}={_shown(value)})"
        try:
            found = call(**{**given, name: value})
            if hasattr(found, "__enter__") and what == "frozen_statistics":
                with found:
                    pass
        except RetainError as error:
            tally["refused"] += 1
            if len(str(error)) < 12 or not str(error).rstrip().endswith((".", ")", "]")):
                tally.surprise("refused without a sentence", f"{said}: {error}")
        except Exception:
            tally.surprise("foreign traceback", f"{said}\n{traceback.format_exc(limit=-3)}")
        else:
            tally["carried out"] += 1
    return tally


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return type(value).__name__


def main() -> None:
    """Try so many, and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # what is asked to be written somewhere is
        tally = try_calls(given.count, given.seed, Path(folder))
        os.chdir("/")
    print(f"calls of the API: tried {given.count:,}, {tally.line()}", *tally.kept, sep="\n")


if __name__ == "__main__":
    main()
