"""The folder of a run: seen to be usable before anything is trained."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from retain import arguments, atomic
from retain.errors import ConfigError, FileError
from retain.experiment.config import Config
from retain.experiment.content import FILE
from retain.experiment.disk import OwnedFolder, owned
from retain.experiment.results import Results

CHECKPOINTS = "checkpoints"
PROBE = ".retain-probe"
STUDY = "study.json"  # of a study, which has more than one run


def how_to_go_on(command: str, folder: Path) -> str:
    """What to tell whoever stopped `retain command`, such as "run", or was stopped."""
    if not any((folder / name).is_file() for name in (FILE, STUDY)):
        return (
            f"{folder} does not hold what was finished any more; was it moved or removed? Give "
            "the same command again, without --resume."
        )
    return (
        f"What was finished is in {folder}. Go on with: retain {command} --resume --out "
        f"{shlex.quote(str(folder))}"
    )


class Begun(NamedTuple):
    """The results to go on with, and whose the folder is."""

    results: Results
    ownership: OwnedFolder


@contextlib.contextmanager
def opened(folder: Path, config: Config, resume: bool, needed: int) -> Iterator[Begun]:
    """Within it the folder is this run's own.

    Args:
        folder: made if it does not exist (without `resume`).
        config: what is asked for now.
        resume: go on with the run that the folder holds, or else begin one.
        needed: bytes that the run may write.

    Raises:
        ConfigError: a run is there already, or is being made; or with `resume` there is none, or
            one with another config, which is shown as a diff; or the folder cannot be written to.
    """
    find = _the_same if resume else _fresh
    find(folder, config)  # before anything is made there
    with made(folder) as ownership:
        results = find(folder, config)  # another run may have ended meanwhile
        _try_writing(folder, needed)
        yield Begun(results, ownership)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[OwnedFolder]:
    """Within it the folder is there, and no other run may write to it.

    Raises:
        ConfigError: it cannot be made, or another run writes to it.
    """
    with contextlib.ExitStack() as held:
        try:
            if folder.is_symlink() and not folder.exists():
                raise FileError(f"{folder} {arguments.absent(folder)}.")
            folder.mkdir(parents=True, exist_ok=True)
            ownership = held.enter_context(owned(folder))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise _unwritable(folder, error) from None
        yield ownership


def _unwritable(folder: Path, error: Exception) -> ConfigError:
    said = str(error) if isinstance(error, FileError) else f"Cannot write to {folder}: {error}."
    return ConfigError(f"{said} Nothing was trained; choose another --out.")


def previous(folder: Path) -> Results:
    """The results of the run that `folder` holds.

    Raises:
        ConfigError: it holds none.
        FileError: they cannot be read.
    """
    if (folder / FILE).is_file():
        return Results.read(folder)
    if any(folder.glob(f"{CHECKPOINTS}/*.safetensors")):
        raise ConfigError(
            f"{folder} has unfinished jobs but no {FILE}: it was removed. Leave --resume out to "
            "start again; the numbers will be the same."
        )
    held = "is not a folder" if folder.exists() else arguments.absent(folder)
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
    refuse_started(folder)
    return Results(config)


def refuse_started(folder: Path) -> None:
    """A folder that holds a run or a study is not written over.

    Raises:
        ConfigError: it holds one.
    """
    for name, what in ((STUDY, "study"), (FILE, "run")):
        if (folder / name).exists():
            raise ConfigError(
                f"{folder} holds a {what} already, and nothing is overwritten. Continue it with "
                "--resume, or choose another folder with --out."
            )


def _try_writing(folder: Path, needed: int) -> None:
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        remove_half_written(folder)
        probe = folder / PROBE
        try:
            atomic.write(probe, b"x" * 4096)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _unwritable(folder, error) from None
    if free < needed:
        raise ConfigError(
            f"{folder} has {free / 1e6:.0f} MB left, and the run may need {needed / 1e6:.0f} MB. "
            "Nothing was trained; free some space or choose another --out."
        )


def remove_half_written(folder: Path) -> None:
    """Take away what a killed run was just writing; what it was to replace is whole."""
    atomic.remove_left_over(folder)
    atomic.remove_left_over(folder / CHECKPOINTS)
