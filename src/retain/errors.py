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
    """An argument or a batch that cannot be used as given."""


class ModelError(RetainError, ValueError):
    """A model that cannot be worked on: no parameters, no head, samples that interact."""


class NonFiniteError(RetainError, ArithmeticError):
    """NaN or infinity in outputs, gradients or importance."""


class OutOfMemoryError(RetainError, MemoryError):
    """Work of which not even the smallest part fits into memory."""


class StateError(RetainError, RuntimeError):
    """The right call at the wrong time, such as a penalty before `consolidate()`."""


class DriftError(StateError):
    """Training that took the weights further from θ* than `stop_when_drift_exceeds` allows."""


class FileError(RetainError, OSError):
    """A file that is missing, foreign, truncated, too new, or does not match the model."""


class ConfigError(RetainError, ValueError):
    """A run, study or command that was asked for in a way that cannot be carried out."""


class MissingExtraError(RetainError, ImportError):
    """An optional dependency that is not installed; the message says which extra to install."""
