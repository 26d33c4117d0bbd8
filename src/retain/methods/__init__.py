"""What the comparison compares: fine-tuning, joint training, and what stands between them."""

from retain.methods.method import Form, ImportanceData, Method, Scenario, Setting
from retain.methods.registry import METHODS, method_named, options_of

__all__ = [
    "METHODS",
    "Form",
    "ImportanceData",
    "Method",
    "Scenario",
    "Setting",
    "method_named",
    "options_of",
]
