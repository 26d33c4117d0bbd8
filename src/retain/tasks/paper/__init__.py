"""The eight data sets of the paper in their official layouts, and what there is of them on disk."""

from retain.tasks.paper.inspection import Inspection, inspect_data
from retain.tasks.paper.official import Counts, Official, PaperSet
from retain.tasks.paper.registry import PAPER_SETS, download_set, read_official

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
