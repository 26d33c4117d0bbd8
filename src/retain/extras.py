"""Optional dependencies: imported when needed, with an error that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any

from retain.errors import MissingExtraError


def needs(package: str, extra: str = "study") -> Any:
    """The module `package`, such as `"matplotlib.pyplot"`.

    Raises:
        MissingExtraError: it is not installed; the message names the extra of `retain` that has it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise  # it is there, but something that it needs itself is not
        raise MissingExtraError(
            f"This needs {package.partition('.')[0]}, which is not installed. "
            f'Install it with: pip install "retain[{extra}]"'
        ) from error
