"""Every error raised on purpose: each says what was given, expected, and what to do."""


class RetainError(Exception):
    """The base of all errors raised on purpose; catch this one to catch them all.

    Examples:
        >>> import torch, retain
        >>> try:
        ...     retain.MAS(torch.nn.Linear(2, 2), strength=-1)
        ... except retain.RetainError as error:
        ...     print(error)
        strength=-1; expected a finite number of at least 0.
    """


class InputError(RetainError, ValueError):
    """An argument or a batch that cannot be used as given.

    Examples:
        >>> try:
        ...     retain.MAS(model).observe([])
        ... except retain.errors.InputError as error:
        ...     print(str(error).split(".")[0])
        The data holds no batch
    """


class ModelError(RetainError, ValueError):
    """A model that cannot be worked on: no parameters, no head, samples that interact.

    Examples:
        >>> try:
        ...     retain.MAS(model.requires_grad_(False)).observe(loader)
        ... except retain.errors.ModelError as error:
        ...     print(str(error).split(":")[0])
        No trainable parameter to protect
    """


class NonFiniteError(RetainError, ArithmeticError):
    """NaN or infinity in outputs, gradients or importance.

    Examples:
        >>> try:
        ...     retain.MAS(model).observe(x / 0)
        ... except retain.errors.NonFiniteError as error:
        ...     print("NaN" in str(error))
        True
    """


class OutOfMemoryError(RetainError, MemoryError):
    """Work of which not even the smallest part fits into memory.

    Examples:
        >>> issubclass(retain.errors.OutOfMemoryError, MemoryError)
        True
    """


class StateError(RetainError, RuntimeError):
    """The right call at the wrong time, such as a penalty before `consolidate()`.

    Examples:
        >>> try:
        ...     retain.MAS(model).observe(loader).penalty()
        ... except retain.errors.StateError as error:
        ...     print("consolidate()" in str(error))
        True
    """


class DriftError(StateError):
    """Training that took the weights further from θ* than `stop_when_drift_exceeds` allows.

    Examples:
        >>> memory = retain.MAS(model).observe(loader).consolidate()
        >>> handle = memory.attach(optimizer, stop_when_drift_exceeds=0.0, every=1)
        >>> criterion(model(x), y).backward()
        >>> try:
        ...     optimizer.step()
        ... except retain.errors.DriftError as error:
        ...     print("beyond the limit" in str(error))
        True
    """


class FileError(RetainError, OSError):
    """A file that is missing, foreign, truncated, too new, or does not match the model.

    Examples:
        >>> try:
        ...     retain.load("nowhere.safetensors", model)
        ... except retain.errors.FileError as error:
        ...     print("nowhere.safetensors" in str(error))
        True
    """


class ConfigError(RetainError, ValueError):
    """A run, study or command that was asked for in a way that cannot be carried out.

    Examples:
        >>> from retain.experiment import Config
        >>> try:
        ...     Config("digits", methods=("mass",))
        ... except retain.errors.ConfigError as error:
        ...     print("Did you mean 'mas'?" in str(error))
        True
    """


class MissingExtraError(RetainError, ImportError):
    """An optional dependency that is not installed; the message says which extra to install.

    Examples:
        >>> issubclass(retain.errors.MissingExtraError, ImportError)
        True
    """
