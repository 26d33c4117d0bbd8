"""What the comparison compares: fine-tuning, joint training, and what stands between them."""

from retain.methods.method import Form, ImportanceData, Method, Setting
from retain.methods.registry import METHODS, PAPER, method_named, options_of

__all__ = [
    "METHODS",
    "PAPER",
    "Form",
    "ImportanceData",
    "Method",
    "Setting",
    "method_named",
    "options_of",
]
