"""A network of a user's own: what a function in a Python file returns."""

from __future__ import annotations

from torch import nn

from retain.errors import ModelError
from retain.tasks.code_files import result_from_file


def model_from_file(spec: str) -> nn.Module:
    """What the function in `path/to/file.py:function` returns, called without arguments.

    Raises:
        ConfigError: the file or the function is not there, or fails.
        ModelError: it returns something other than an `nn.Module`.
    """
    model = result_from_file(spec, "model")
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returns a {type(model).__name__}; expected an nn.Module.")
    return model
