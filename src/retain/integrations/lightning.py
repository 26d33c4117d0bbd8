"""A callback for Lightning's Trainer: its steps are protected while it trains."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from retain import arguments
from retain.errors import InputError, StateError
from retain.extras import needs
from retain.integrations.held import (
    MemoryLike,
    is_beyond,
    refuse_other,
    refuse_unready,
    relative_drift,
)

Callback: Any = needs("lightning.pytorch", "trainers").Callback


class RetainCallback(Callback):
    """Protects every step of every optimizer that holds protected parameters.

        trainer = Trainer(callbacks=[RetainCallback(memory)], …)

    Automatic and manual optimisation, gradient accumulation and clipping are Lightning's own; what
    the memory adds to a gradient is added after clipping. The memory is in every checkpoint, as
    this callback's state, and is taken up when training resumes from one. `penalty` and `drift`
    are logged as often as Lightning logs.

    Args:
        memory: `retain.MAS(model)` or its like, consolidated, or a `LoraPenalty`.
        form: how the penalty acts on a step, as in `memory.attach`.
        name: of its state in a checkpoint, and behind what it logs; give another to each of several
            callbacks.
        stop_when_drift_exceeds: a limit of `drift`, looked at as often as Lightning logs: beyond
            it, training ends after the batch.

    Raises (in `trainer.fit()`):
        InputError: no optimizer holds any of the protected parameters.
        StateError: something was observed but never consolidated.

    Examples:
        >>> from retain.integrations.lightning import RetainCallback
        >>> memory = retain.MAS(model).observe(loader).consolidate()
        >>> callback = RetainCallback(memory)  # Trainer(callbacks=[callback], …)
        >>> callback.form
        'adaptive'
    """

    def __init__(
        self,
        memory: MemoryLike,
        form: str = "adaptive",
        *,
        name: str = "memory",
        stop_when_drift_exceeds: float | None = None,
    ) -> None:
        super().__init__()
        self.stop_when_drift_exceeds: float | None = arguments.optional(
            arguments.number, "stop_when_drift_exceeds", stop_when_drift_exceeds, least=0
        )
        refuse_other(memory, form)
        arguments.text("name", name)
        self.memory: Any = memory
        self.form = form
        self.name = name
        self._handles: list[Any] = []

    @property
    def state_key(self) -> str:
        """Where its state is in a checkpoint."""
        return f"RetainCallback[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        """The memory, as plain data and tensors."""
        state: dict[str, Any] = self.memory.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the memory up as it was in a checkpoint."""
        self.memory.load_state_dict(state_dict)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Say so when a checkpoint has no memory."""
        if self.state_key not in checkpoint.get("callbacks", {}):
            warnings.warn(
                "Training resumes from a checkpoint without a memory: it has no state of "
                f"{self.state_key}. It continues with the memory that the callback was given.",
                stacklevel=2,
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the memory to the optimizers."""
        self._let_go()
        refuse_unready(self.memory)
        refusals = []
        for optimizer in trainer.optimizers:
            try:
                self._handles.append(self.memory.attach(optimizer, form=self.form))
            except InputError as error:
                refusals.append(error)
        if not self._handles:
            if refusals:
                raise refusals[0]
            raise StateError("There is no optimizer to protect: configure_optimizers gave none.")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_given: Any, **_more: Any) -> None:
        """Log `penalty` and `drift`."""
        if trainer.global_step % trainer.log_every_n_steps:
            return
        suffix = "" if self.name == "memory" else f"_{self.name}"
        with torch.no_grad():
            pl_module.log(f"penalty{suffix}", float(self.memory.penalty()))
        drift = relative_drift(self.memory)
        pl_module.log(f"drift{suffix}", drift)
        if not trainer.should_stop and is_beyond(drift, self.stop_when_drift_exceeds):
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the optimizers as they were."""
        self._let_go()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Training failed or was interrupted."""
        self._let_go()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Whatever happened, it is over."""
        self._let_go()

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
