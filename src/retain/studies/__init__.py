"""The paper's experiments: each a named function that returns what is to be run."""

from retain.studies.run import carry_out
from retain.studies.studies import STUDIES, study_named
from retain.studies.study import Asked, Part, Study
from retain.studies.study_folder import gather, is_study

__all__ = [
    "STUDIES", "Asked", "Part", "Study", "carry_out", "gather", "is_study", "study_named",
]  # fmt: skip
