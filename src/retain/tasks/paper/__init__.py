"""The eight data sets of the paper in their official layouts, and what there is of them on disk."""

from retain.tasks.paper.data_sets import PAPER_SETS, download_set, read_official
from retain.tasks.paper.inspection import Inspection, inspect_data
from retain.tasks.paper.official import Counts, Official, PaperSet

__all__ = [
    "PAPER_SETS",
    "Counts",
    "Inspection",
    "Official",
    "PaperSet",
    "download_set",
    "inspect_data",
    "read_official",
]
