"""The folder of a run: seen to be usable before anything is trained."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
from pathlib import Path

from retain.errors import ConfigError
from retain.experiment.config import Config
from retain.experiment.disk import write_atomically
from retain.experiment.results import FILE, Results

CHECKPOINTS = "checkpoints"


def how_to_go_on(command: str, folder: Path) -> str:
    """What to tell whoever stopped `retain command`, such as "run", or was stopped."""
    return (
        f"What was finished is in {folder}. Go on with: retain {command} --resume --out "
        f"{shlex.quote(str(folder))}"
    )


def opened(folder: Path, config: Config, resume: bool, needed: int) -> Results:
    """The results to go on with: new ones, or with `resume` those that are in `folder`.

    Args:
        folder: made if it does not exist (without `resume`).
        config: what is asked for now.
        resume: go on with the run that the folder holds.
        needed: bytes that the run may write.

    Raises:
        ConfigError: a run is there already; or with `resume` there is none, or one with another
            config, which is shown as a diff; or the folder cannot be written to.
    """
    results = _the_same(folder, config) if resume else _fresh(folder, config)
    _try_writing(folder, needed)
    return results


def previous(folder: Path) -> Results:
    """The results of the run that `folder` holds.

    Raises:
        ConfigError: it holds none.
        FileError: they cannot be read.
    """
    if (folder / FILE).is_file():
        return Results.read(folder)
    held = "does not exist" if not folder.exists() else "is not a folder"
    if folder.is_dir():
        held = f"holds other files, and no {FILE}" if any(folder.iterdir()) else "is empty"
    raise ConfigError(
        f"There is no run to resume: {folder} {held}. Leave --resume out to start one."
    )


def _the_same(folder: Path, config: Config) -> Results:
    results = previous(folder)
    differences = results.config.differences(config)
    if differences:
        raise ConfigError(
            f"The run in {folder} was started with another config, so it is not resumed. "
            "Then → now: " + "; ".join(differences)
        )
    return results


def _fresh(folder: Path, config: Config) -> Results:
    if (folder / FILE).exists():
        raise ConfigError(
            f"{folder} holds a run already, and nothing is overwritten. Go on with it with "
            "--resume, or choose another folder with --out."
        )
    return Results(config)


def _try_writing(folder: Path, needed: int) -> None:
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        probe = folder / f".probe-{secrets.token_hex(4)}"
        try:
            write_atomically(probe, b"x" * 4096)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(
            f"Cannot write to {folder}: {error}. Nothing was trained; choose another --out."
        ) from None
    if free < needed:
        raise ConfigError(
            f"{folder} has {free / 1e6:.0f} MB left, and the run may need {needed / 1e6:.0f} MB. "
            "Nothing was trained; free some space or choose another --out."
        )


def _sweep(folder: Path) -> None:
    """Take away what a killed run was just writing; what it was to replace is whole."""
    halves = [*folder.glob(".*.tmp"), *folder.glob(".probe-*"), *(folder / CHECKPOINTS).glob(".*")]
    for half in halves:
        half.unlink(missing_ok=True)
