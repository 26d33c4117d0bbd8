"""study.json, changed and damaged in every way, read by all that read it.

It is read, its parts are gathered into one results.json, and once the report is made of it.
"""

from __future__ import annotations

import copy
import json
import random
import traceback
from pathlib import Path

from retain import report
from retain.errors import RetainError
from retain.experiment.disk import DIGEST
from retain.studies import Asked, carry_out, gather, study_named
from retain.studies.study_folder import recorded
from tests.hostile.values import FORGED, Tally, changed, damaged


def begun(folder: Path) -> bytes:
    """The study.json of a study whose parts are done."""
    few = {"epochs": 1, "batch_size": 4, "samples_per_class": 4, "device": "cpu", "seeds": (0,)}
    study = study_named("table3", Asked(data="digits", **few))
    carry_out(study, folder, progress=False)
    return (folder / "study.json").read_bytes()


def try_studies(count: int, seed: int, folder: Path) -> Tally:
    """Mutants of a study.json: refused, or the study that it says."""
    dice, tally = random.Random(seed), Tally()
    whole = begun(folder)
    real = recorded(folder)
    plain = {name: value for name, value in json.loads(whole).items() if name != DIGEST}
    for number in range(count):
        forging = dice.random() < 0.7
        if forging:
            text = json.dumps(changed(copy.deepcopy(plain), dice)).encode()
        else:
            text = damaged(whole, dice)
        (folder / "study.json").write_bytes(text)
        try:
            found = recorded(folder)
            gather(folder)
            if number == count // 2:  # takes longer than all else
                report.write(folder)
        except RetainError:
            tally["refused"] += 1
        except Exception:
            tally.surprise("foreign traceback", traceback.format_exc(limit=-3))
        else:
            if found == real:
                tally["accepted unchanged"] += 1
            elif forging:
                tally[FORGED] += 1
            else:
                tally.surprise("accepted with another value", repr(text)[:300])
        _look_around(folder, tally)
    return tally


def _look_around(folder: Path, tally: Tally) -> None:
    """Nothing is written beside the study's folder, whatever a part calls its own."""
    beside = sorted(entry.name for entry in folder.parent.iterdir())
    if beside != [folder.name]:
        tally.surprise("written elsewhere", str(beside))
