"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from retain.errors import MissingExtraError


def needs(module: str, extra: str = "study") -> ModuleType:
    """The module of that name.

    Args:
        module: its full name, such as "matplotlib.pyplot".
        extra: the extra of `retain` that installs it.

    Raises:
        MissingExtraError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f'This needs {package}, which is not installed: pip install "retain[{extra}]"'
        ) from error
