"""Everything hostile, short or long; prints the table of docs/reliability.md.

python -m tests.hostile                                  a minute or two
python -m tests.hostile --long --into figures            what the table shows; can be gone on with
python -m tests.hostile --long --only memories --only run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.hostile.trials import TRIALS, run, surprises, table


def main() -> int:
    """Try all of it, or what is named; 1 if anything happened that must not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true", help="as often as the table says")
    parser.add_argument(
        "--only", action="append", choices=[t.name for t in TRIALS], help="this one; repeatable"
    )
    parser.add_argument("--into", type=Path, help="a folder that keeps the figures of each piece")
    given = parser.parse_args()
    wanted = [trial for trial in TRIALS if given.only is None or trial.name in given.only]
    found = run(wanted, long=given.long, kept=given.into)
    print(table(found))
    return int(any(surprises(tally) for _, tally in found))


if __name__ == "__main__":
    sys.exit(main())
