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
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retain
from retain.errors import RetainError
from tests.hostile.targets import Target, targets
from tests.hostile.values import VALUES, Tally

ODD: tuple[Any, ...] = (
    *VALUES, object(), int, len, nn.Linear, nn.Linear(2, 2), nn.Linear(2, 2, device="meta"),
    torch.ones(3), torch.ones(0), torch.tensor(True), torch.float8_e5m2, torch.int32, torch.float16,
    torch.device("meta"), "cuda:99", "cpu", b"x", Path("/dev/null/at/all"), 1j, range(3), lambda: 1,
    lambda *_: "x", iter([]), {"a": torch.ones(2)}, retain.Importance({}, 0), slice(None),
)  # fmt: skip
OWN = ("train", "loss", "output", "samples_of", "padding_mask", "progress")


def try_calls(count: int, seed: int, folder: Path) -> Tally:
    """So many calls, each with one argument replaced."""
    dice, tally = random.Random(seed), Tally()
    each = targets()
    places = [
        (target, name)
        for target in each
        for name, parameter in inspect.signature(target.make(folder)[0]).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    dice.shuffle(places)
    for number in range(count):
        target, name = places[number % len(places)]
        values = [one for one in ODD if not (name in OWN and callable(one))]
        _try(target, name, dice.choice(values), folder, tally)
    return tally


def _try(target: Target, name: str, value: Any, folder: Path, tally: Tally) -> None:
    """One call; what a user's own function raises is the user's, and is not tried."""
    call, given = target.make(folder)
    said = f"{target.name}({name}={_shown(value)})"
    try:
        found = call(**{**given, name: value})
        if hasattr(found, "__enter__"):
            with found:
                pass
    except RetainError as error:
        tally["refused"] += 1
        said_last = str(error).rstrip().splitlines()[-1:] or [""]
        listed = said_last[0].startswith("  ")  # a line for each that is wrong
        if len(str(error)) < 12 or not (listed or said_last[0].endswith((".", ")", "]"))):
            tally.surprise("refused without a sentence", f"{said}: {error}")
    except Exception:
        tally.surprise("foreign traceback", f"{said}\n{traceback.format_exc(limit=-3)}")
    else:
        tally["carried out"] += 1
    finally:
        for left in folder.rglob("*.json"):
            left.unlink()


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
