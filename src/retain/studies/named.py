"""Every study by its name."""

from __future__ import annotations

from collections.abc import Callable

from retain.closest import did_you_mean
from retain.errors import ConfigError
from retain.studies.adaptation import adaptation
from retain.studies.asked import Asked
from retain.studies.material import Material
from retain.studies.memory import memory
from retain.studies.planning import material_of
from retain.studies.sequence import sequence
from retain.studies.study import Study
from retain.studies.table2 import table2
from retain.studies.table3 import table3

STUDIES: dict[str, Callable[[Material, Asked], Study]] = {
    study.__name__: study for study in (table2, table3, sequence, memory, adaptation)
}


def study_named(name: str, asked: Asked) -> Study:
    """The study of that name, as it was asked for.

    Raises:
        ConfigError: there is none, or it cannot be carried out.
        FileError: data that cannot be read.
    """
    if name not in STUDIES:
        raise ConfigError(
            f"Unknown study {name!r}.{did_you_mean(name, STUDIES)} Known: {', '.join(STUDIES)}."
        )
    if asked.adapt_to and name != "adaptation":
        raise ConfigError(f"--adapt-to is for the study adaptation, and {name} has no use for it.")
    return STUDIES[name](material_of(asked), asked)
