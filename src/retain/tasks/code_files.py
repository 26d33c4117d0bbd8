"""A user's own code: a function that a Python file holds."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from retain import arguments
from retain.closest import did_you_mean
from retain.errors import ConfigError

USAGE = "path/to/file.py:function"


def is_code(spec: str) -> bool:
    """Whether something is named by a file of Python, which is run to make it."""
    return ".py:" in spec or spec.endswith(".py")


def result_from_file(spec: str, what: str) -> Any:
    """What the function in `path/to/file.py:function` returns, called without arguments.

    Raises:
        ConfigError: the file or the function is not there, or fails.
    """
    function = function_from_file(spec, what)
    path, _, name = spec.rpartition(":")
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also where it would end the process
        raise ConfigError(
            f"{name}() in {path}, which is called without arguments, failed: "
            f"{type(error).__name__}: {error}"
        ) from error


def function_from_file(spec: str, what: str) -> Callable[..., Any]:
    """What `path/to/file.py:function` names; `what` the file is for, such as "model", is said.

    Raises:
        ConfigError: the file or the function is not there, or the file cannot be run.
    """
    return functions_from_file(spec, what)()


def functions_from_file(spec: str, what: str) -> Callable[[], Callable[..., Any]]:
    """The same function again and again, each time of a file that is run anew.

    What it left in its module is gone then. The file is read once: it may change meanwhile.

    Raises:
        ConfigError: the file is not there, or cannot be read.
    """
    path, _, name = spec.rpartition(":")
    if not path or not name:
        raise ConfigError(f"{spec!r} names no function; expected {USAGE}.")
    run_anew = _modules(Path(path).expanduser(), what)
    return lambda: _function(run_anew(), path, name)


def _function(module: ModuleType, path: str, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        functions = _functions(module)
        raise ConfigError(
            f"{path} has no function {name!r}.{did_you_mean(name, functions)} "
            f"It has: {', '.join(functions) or 'none'}."
        )
    found: Callable[..., Any] = function
    return found


def _modules(path: Path, what: str) -> Callable[[], ModuleType]:
    if not path.is_file():
        raise ConfigError(f"The {what} file {path} {arguments.absent(path)}; expected {USAGE}.")
    name = f"retain_{what}_file_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or not isinstance(found.loader, SourceFileLoader):
        raise ConfigError(f"{path} is not a Python file; expected {USAGE}.")
    try:
        code = compile(found.loader.get_data(str(path)), str(path), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        raise _cannot_be_run(path, what, error) from error

    def run_anew() -> ModuleType:
        module = importlib.util.module_from_spec(found)
        # Where classes of the file look for their own module, for example when they are copied.
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise _cannot_be_run(path, what, error) from error
        return module

    return run_anew


def _cannot_be_run(path: Path, what: str, error: BaseException) -> ConfigError:
    said = f"{type(error).__name__}: {error}"
    return ConfigError(f"The {what} file {path} could not be run: {said}")


def _functions(module: ModuleType) -> list[str]:
    own = (item for item in vars(module).values() if inspect.isfunction(item))
    return [function.__name__ for function in own if function.__module__ == module.__name__]
