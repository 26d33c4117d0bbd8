"""What `attach` gives: a handle on the optimizers whose steps are protected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from torch.optim import Optimizer
from typing_extensions import Self

from retain.errors import StateError
from retain.memory.attachment import Attachment, StepWatcher
from retain.memory.optimizers import FoundOptimizer


class Handle:
    """What `attach` returns: `remove()` it, or use it as a context manager.

    An optimizer that several handles of one memory hold is protected once, until the last of them
    is removed.

    Examples:
        >>> memory = retain.MAS(model).observe(loader).consolidate()
        >>> handle = memory.attach(optimizer)  # a Handle
        >>> criterion(model(x), y).backward()
        >>> optimizer.step()  # protected
        >>> handle.remove()
    """

    def __init__(
        self, attachments: Iterable[Attachment], watcher: StepWatcher | None = None
    ) -> None:
        self._attachments = list(attachments)
        self._token = object()
        for attachment in self._attachments:
            attachment.held_by(self._token, watcher)
        self._removed = False

    @property
    def attached(self) -> bool:
        """Whether it still protects steps.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> handle = memory.attach(optimizer)
            >>> handle.attached
            True
        """
        return not self._removed

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """One for each optimizer.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> handle = memory.attach(optimizer)
            >>> [one.form for one in handle.attachments]
            ['gradient']
        """
        return tuple(self._attachments)

    @property
    def steps(self) -> int:
        """How many steps were protected so far, of all its optimizers together.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> handle = memory.attach(optimizer)
            >>> criterion(model(x), y).backward()
            >>> optimizer.step()
            >>> handle.steps
            1
        """
        return sum(attachment.steps for attachment in self._attachments)

    @property
    def form(self) -> str:
        """In which form it does.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> memory.attach(optimizer, form="proximal").form
            'proximal'
        """
        return self._attachments[0].form

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The torch optimizers whose steps are protected.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> handle = memory.attach(optimizer)
            >>> handle.optimizers == (optimizer,)
            True
        """
        return tuple(attachment.optimizer for attachment in self._attachments)

    def remove(self) -> None:
        """Leave the optimizer as it was; a second time changes nothing.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> handle = memory.attach(optimizer)
            >>> handle.remove()
            >>> handle.attached
            False
        """
        self._removed = True
        for attachment in self._attachments:
            attachment.let_go(self._token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def attached(
    found: Sequence[FoundOptimizer],
    form: str,
    known: Iterable[Attachment],
    make: Callable[[FoundOptimizer], Attachment],
    watcher: StepWatcher | None = None,
) -> Handle:
    """A handle for all optimizers `found`: those that are in `known` already, and new ones.

    Raises:
        StateError: one is attached in another form.
    """
    live = {id(one.optimizer): one for one in known if one.attached}
    other = next((live[id(f.optimizer)] for f in found if id(f.optimizer) in live), None)
    if other is not None and other.form != form:
        raise StateError(
            f'This optimizer is attached already, with form="{other.form}", and the penalty would '
            "count twice. Call remove() on the first handle before."
        )
    return Handle([live.get(id(one.optimizer)) or make(one) for one in found], watcher)
