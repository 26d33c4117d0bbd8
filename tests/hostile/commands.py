"""Command lines that nobody should give: every option of every command with every odd value.

python -m tests.hostile.commands --count 1000
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from retain import Importance
from retain.cli.app import app
from retain.studies.run import StudyOutcome
from retain.studies.study_folder import gather
from tests.hostile.values import Tally

ODD = (
    "", " ", "x", "0", "1", "-1", "3", "1.5", "nan", "inf", "-inf", "1e400", "1" + "0" * 400,
    "9" * 5000, str(2**31), str(2**64), "auto", "mas", "mas=1", "mas=", "=1", "mas=nan", "mas=-1",
    "mas=1:1", "mas.x=1", "mas.form=" + "[" * 3000, "mas.strength=1e999", "a,b", ",", "digits",
    "digits=", "mnist=", "folders:", "folders:a=", "folders:a=/nowhere", "paper=", ":", "=",
    "permuted-digits=0", "permuted-digits=²", "permuted-digits=999999999999", "cuda:99", "meta",
    "mps", "x.py:y", ".py:", "[/x]", "$5_$10", "a" * 300, "a/b/../c", "caf\udce9", "\x1b[2J",
    "~nobody/x", "none", "default", "table2", "digits,digits", "0,0", "0,1,", "true",
)  # fmt: skip
NEVER = ("--download", "--help")  # the network, and what ends before anything is looked at
MODEL = """
import torch
def made():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(2, 2))
"""


def written(folder: Path) -> dict[str, list[str]]:
    """For each command what it takes at the least, on data in `folder`."""
    (folder / "photos").mkdir()
    for number in range(2):
        Image.new("RGB", (20, 20), (number, 40, 80)).save(folder / "photos" / f"{number}.png")
    (folder / "mine.py").write_text(MODEL)
    before = {"w": torch.tensor([1.0, 2.0])}
    torch.save(before, folder / "before.pt")
    torch.save({"w": torch.tensor([3.0, 4.0])}, folder / "after.pt")
    Importance({"w": torch.ones(2)}, 3).save(folder / "small.safetensors")
    out = ["--out", str(folder / "out")]
    few = ["--samples-per-class", "4", "--batch-size", "4"]
    return {
        "demo": out,
        "run": ["--tasks", "digits", *few, *out],
        "study": ["table3", "--data", "digits", *few, *out],
        "datasets": [],
        "report": [str(folder / "out")],
        "importance": [f"{folder / 'mine.py'}:made", "--data", str(folder / "photos"),
                       "--image-size", "8", "--out", str(folder / "omega.safetensors")],
        "inspect": [str(folder / "omega.safetensors")],
        "compare": ["--tasks", "digits", *few, *out],
        "repair": [str(folder / "before.pt"), str(folder / "after.pt"), "--memory",
                   str(folder / "small.safetensors"), "--out", str(folder / "mended.safetensors")],
    }  # fmt: skip


@contextmanager
def without_training(folder: Path) -> Iterator[None]:
    """Within it a run is looked at, and not carried out; files go into the folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(
            "retain.studies.run._carried_out",
            lambda study, out, *_: StudyOutcome(study, gather(out)),
        )
        module = sys.modules["retain.experiment.run"]
        patched.setattr(module, "_carry_out_all", lambda *_: None)
        yield


def lines(count: int, seed: int, folder: Path) -> Iterator[list[str]]:
    """Command lines with one to three odd values in place of, or beside, sensible ones."""
    dice, usual = random.Random(seed), written(folder)
    group: Any = typer.main.get_command(app)
    for _ in range(count):
        name = dice.choice([*usual, "run", "run", "study", "importance"])
        options = [
            one for one in group.commands[name].params
            if one.param_type_name == "option" and not {*one.opts} & {*NEVER}
        ]  # fmt: skip
        line = list(usual[name])
        for option in dice.sample(options, min(len(options), dice.choice((1, 1, 2, 3)))):
            line += [option.opts[0]] if option.is_flag else [option.opts[0], dice.choice(ODD)]
        named = [at for at, one in enumerate(usual[name][:2]) if not one.startswith("-")]
        if name != "demo" and named[:1] == [0] and dice.random() < 0.2:
            line[dice.choice([at for at in named if at in (0, len(named) - 1)])] = dice.choice(ODD)
        yield [name, *line]


def try_commands(count: int, seed: int, folder: Path) -> Tally:
    """Each is refused in words with exit code 2, or carried out; never a traceback."""
    tally = Tally()
    with without_training(folder):
        for line in lines(count, seed, folder):
            torch.manual_seed(0)
            result = CliRunner().invoke(app, line)
            told = " ".join(part[:60] for part in line)
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                trace = "".join(traceback.format_exception(result.exception)[-3:])
                tally.surprise("foreign traceback", f"{told}\n{trace}")
            elif "Traceback" in result.output:
                tally.surprise("foreign traceback", told)
            elif result.exit_code == 2:
                tally["refused"] += 1
            elif result.exit_code in (0, 1):
                tally["carried out"] += 1
            else:
                tally.surprise("another exit code", f"{told}: {result.exit_code}")
            for left in (folder / "out").rglob("*.json"):
                left.unlink()
    return tally


def main() -> None:
    """Try so many, and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        tally = try_commands(given.count, given.seed, Path(folder))
    print(f"command lines: tried {given.count:,}, {tally.line()}", *tally.kept, sep="\n")


if __name__ == "__main__":
    main()
