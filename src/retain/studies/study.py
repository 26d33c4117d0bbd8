"""What a study is: runs that belong together, as one value that goes to JSON and comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from retain.errors import ConfigError
from retain.experiment import Config


@dataclass(frozen=True)
class Part:
    """One run of a study, under a name such as "birds → scenes"."""

    name: str
    config: Config


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

    def without(self, part: Part, reason: str) -> Study:
        """The study with a part that could not be run, and why."""
        kept = tuple(one for one in self.parts if one.name != part.name)
        return replace(self, parts=kept, skipped={**self.skipped, part.name: reason})

    def said(self) -> dict[str, Any]:
        """Everything about the study but its parts, as JSON knows it."""
        return {
            "study": self.name,
            "title": self.title,
            "data": self.data,
            "stand_in": self.stand_in,
            "quick": self.quick,
            "splits": self.splits,
            "skipped": dict(self.skipped),
            "altered": dict(self.altered),
            "departures": list(self.departures),
            "adapt_to": list(self.adapt_to),
        }

    def to_json(self) -> dict[str, Any]:
        """The study as JSON knows it; `from_json` gives an equal one back."""
        parts = [{"name": part.name, "config": part.config.to_json()} for part in self.parts]
        return {**self.said(), "parts": parts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Study:
        """The study that `to_json` came from.

        Raises:
            ConfigError: something is missing, or a config cannot be carried out.
        """
        try:
            given = dict(content)
            parts = tuple(
                Part(part["name"], Config.from_json(part["config"])) for part in given.pop("parts")
            )
            given["name"] = given.pop("study")
            for key in ("departures", "adapt_to"):
                given[key] = tuple(given[key])
            return cls(parts=parts, **given)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"This is not the record of a study: {error}.") from None

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
