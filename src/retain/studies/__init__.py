"""The paper's experiments: each a named function that returns what is to be run."""

from retain.studies.asked import Asked
from retain.studies.carrying_out import carry_out
from retain.studies.folder import gather, is_study
from retain.studies.named import STUDIES, study_named
from retain.studies.study import Part, Study

__all__ = [
    "STUDIES", "Asked", "Part", "Study", "carry_out", "gather", "is_study", "study_named",
]  # fmt: skip
