"""Short runs of what kills, serves, borrows and fills a disk; the long ones are commands."""

import pytest

from tests.hostile.full_disk import NoTmpfsError
from tests.hostile.trials import TRIALS, surprises, table
from tests.hostile.values import Tally

BY_NAME = {trial.name: trial for trial in TRIALS}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("save", 3),
        ("serving", 96),
        ("borrowing", 40),
        ("disk", 6),
        pytest.param("run", 2, marks=pytest.mark.slow),
        pytest.param("study", 2, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_and_nothing_is_another(name, count):
    if name not in BY_NAME:
        pytest.skip("not on this system")
    try:
        done = BY_NAME[name].done(count, 7)
    except NoTmpfsError as why:
        pytest.skip(f"no small disk may be mounted here: {why}")
    tally = done["tally"]
    assert not surprises(tally), done["kept"]
    assert tally["tried"] >= count - 6
    assert tally["accepted unchanged"] + tally["refused"] == tally["tried"]


def test_pieces_make_up_the_whole_and_what_must_not_happen_is_told():
    for trial in TRIALS:
        assert sum(count for _, count in trial.pieces(long=True)) == trial.long
    tally = Tally()
    tally.update({"tried": 3, "refused": 2, "lost": 1})
    assert surprises(tally) == {"lost": 1}
    assert "| 3 | 2 | 0 | 0 | 0 | 1 |" in table([(TRIALS[0], tally)])
