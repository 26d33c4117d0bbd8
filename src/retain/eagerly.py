"""Methods that are not made part of the graph when `torch.compile` compiles their callers."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def eagerly(method: Callable[..., Result]) -> Callable[..., Result]:
    """The same, called as it is where a caller is compiled: its inside is none of their business.

    It looks at weights and counts, which would be traced, and compiled again when they change.
    """

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Result:
        if torch.compiler.is_dynamo_compiling():
            apart: Callable[..., Result] = torch.compiler.disable(method)
            return apart(*args, **kwargs)
        return method(*args, **kwargs)

    return run
