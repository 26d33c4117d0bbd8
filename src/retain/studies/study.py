"""What is asked of a study, and what it then is: runs that belong together, to JSON and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retain.closest import did_you_mean
from retain.errors import ConfigError
from retain.experiment import Config
from retain.experiment.checks import Several, Word, listed, problems, sentence
from retain.experiment.config import frozen, plain

UNTRAINED = "none"  # said for --weights, where weights are the default
# The options of a run that win over the protocol of the data.
SETTINGS = (
    "model", "weights", "seeds", "epochs", "batch_size", "lr", "optimizer", "image_size",
    "samples_per_class", "strengths", "forms", "device", "amp", "loaders",
)  # fmt: skip
LONGEST = 60  # characters of a folder's name


class Asked(BaseModel):
    """What a user asks of a study; what is left out is the protocol's.

    Beside its own fields it takes those of `Config` that are named in `SETTINGS`.

    Raises:
        ConfigError: a field that there is not, or a value of the wrong kind.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)

    data: Word = Field(
        description="the folder of the paper's data sets (retain datasets says what they need), or "
        "stand-ins: digits, or folders:NAME=PATH,NAME=PATH",
    )
    sets: Annotated[tuple[Word, ...], Several] = Field(
        (), description="only these of the data sets, such as flowers,birds,scenes"
    )
    adapt_to: Annotated[tuple[Word, ...], Several] = Field(
        (), description="adaptation: the classes of the first task that matter"
    )
    quick: bool = Field(False, description="a reduced version, marked as such on every page")

    def __init__(self, data: str, **given: Any) -> None:
        try:
            super().__init__(data=data, **given)
        except ValidationError as error:
            raise ConfigError(" ".join(sentence(Asked, one) for one in error.errors())) from None
        known = [*Asked.model_fields, *SETTINGS]
        unknown = [name for name in self.settings if name not in SETTINGS]
        if unknown:
            raise ConfigError(
                " ".join(
                    f"A study has no option {name!r}.{did_you_mean(name, known)}"
                    for name in unknown
                )
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, by the names of a config's fields."""
        found = self.model_extra or {}
        return {name: value for name, value in found.items() if value not in (None, ())}


@dataclass(frozen=True)
class Part:
    """One run of a study, under a name such as "birds → scenes", in a folder of its own."""

    name: str
    config: Config
    folder: str = ""


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it.

    Attributes:
        name: which study, such as "table2".
        title: what its report is called.
        data: the data as they were asked for.
        parts: its runs, in the order in which they are carried out.
        stand_in: what stands in for the paper's data sets; "" where the data are the paper's.
        quick: whether it is a reduced version.
        splits: a sentence on how the splits were made.
        skipped: what cannot be run, and why.
        altered: data sets that are not as they were published, and in what.
        departures: in what it differs from the paper's protocol, a clause each.
        adapt_to: the classes of the first task that matter, in the study of adaptation.
    """

    name: str
    title: str
    data: str
    parts: tuple[Part, ...]
    stand_in: str = ""
    quick: bool = False
    splits: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    altered: Mapping[str, str] = field(default_factory=dict)
    departures: tuple[str, ...] = ()
    adapt_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _in_folders(self.parts))

    def without(self, part: Part, reason: str) -> Study:
        """The study with a part that could not be run, and why."""
        kept = tuple(one for one in self.parts if one.name != part.name)
        return replace(self, parts=kept, skipped={**self.skipped, part.name: reason})

    def said(self) -> dict[str, Any]:
        """Everything about the study but its parts, as JSON knows it."""
        return {"study": self.name, **{name: plain(getattr(self, name)) for name in SAID}}

    def to_json(self) -> dict[str, Any]:
        """The study as JSON knows it; `from_json` gives an equal one back."""
        parts = [
            {"name": part.name, "folder": part.folder, "config": part.config.to_json()}
            for part in self.parts
        ]
        return {**self.said(), "parts": parts}

    @classmethod
    def from_json(cls, content: Any) -> Study:
        """The study that `to_json` came from.

        Raises:
            ConfigError: something is missing, or a config cannot be carried out.
        """
        try:
            said = _Said.model_validate(content)
        except ValidationError as error:
            found = listed(problems(error))
            raise ConfigError(f"This is not the record of a study:{found}") from None
        parts = tuple(
            Part(one.name, Config.from_json(one.config), one.folder) for one in said.parts
        )
        more = {name: frozen(getattr(said, name)) for name in SAID}
        return cls(name=said.study, parts=parts, **more)

    def differences(self, other: Study) -> list[str]:
        """A line for everything in which the parts that both studies have differ."""
        mine = {part.name: part.config for part in self.parts}
        lines = [] if self.name == other.name else [f"study: {self.name} → {other.name}"]
        for part in other.parts:
            if part.name in mine:
                found = mine[part.name].differences(part.config)
                lines += [f"{part.name}: {line}" for line in found]
        if mine and not mine.keys() & {part.name for part in other.parts}:
            lines.append(f"parts: {', '.join(mine)} → {', '.join(p.name for p in other.parts)}")
        return lines


def _in_folders(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts, each in a folder of its own: `birds → scenes` in birds-scenes."""
    parts = tuple(parts)
    taken = {part.folder for part in parts if part.folder}
    placed = []
    for part in parts:
        folder = part.folder or _folder(part.name)
        if not part.folder and folder in taken:  # names that differ in what no folder shows
            folder = f"{folder}-{hashlib.sha256(_bytes(part.name)).hexdigest()[:8]}"
        taken.add(folder)
        placed.append(replace(part, folder=folder))
    return tuple(placed)


def _folder(name: str) -> str:
    words = re.sub(r"[^\w]+", "-", name).strip("-").lower() or "part"
    if len(_bytes(words)) <= LONGEST:
        return words
    short = _bytes(words)[:LONGEST].decode("utf-8", "ignore").rstrip("-")
    return f"{short}-{hashlib.sha256(_bytes(name)).hexdigest()[:8]}"


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


# ---- the file ----

FolderName = Annotated[str, Field(pattern=r"^[\w-]*$", max_length=200)]


class _Part(BaseModel):
    name: Word
    folder: FolderName = ""
    config: dict[str, Any]


class _Said(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    study: Word
    title: str
    data: str
    parts: list[_Part]
    stand_in: str
    quick: bool
    splits: str
    skipped: dict[str, str]
    altered: dict[str, str]
    departures: list[str]
    adapt_to: list[str]


SAID = tuple(name for name in _Said.model_fields if name not in ("study", "parts"))
