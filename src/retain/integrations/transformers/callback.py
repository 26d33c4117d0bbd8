"""A callback for Hugging Face's Trainer: its steps are protected while it trains."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import torch

from retain import arguments
from retain.errors import InputError, StateError
from retain.extras import needs
from retain.header import shown
from retain.integrations.held import (
    MemoryLike,
    is_beyond,
    refuse_other,
    refuse_unready,
    relative_drift,
    take_up,
)
from retain.sharding import any_sharded

_trainer_callback = needs("transformers.trainer_callback", "trainers")
TrainerCallback: Any = _trainer_callback.TrainerCallback
ExportableState: Any = _trainer_callback.ExportableState

FILE = "retain.safetensors"  # in each checkpoint folder


class RetainCallback(TrainerCallback, ExportableState):
    """Protects every step that a Trainer takes, logs the penalty, and keeps the memory with it.

        trainer = Trainer(model, args, callbacks=[RetainCallback(memory)], …)

    The memory acts on the optimizer that Trainer steps, for the length of a step, after clipping:
    whenever training ends or fails, the optimizer is as it was. `penalty` and `drift` (the expected
    change of the output, `memory.drift().relative`) join Trainer's own logs. Each checkpoint folder
    gets the memory as a file, which `resume_from_checkpoint` takes up.

    Args:
        memory: `retain.MAS(model)` or its like, consolidated, or a `LoraPenalty`.
        form: how the penalty acts on a step, as in `memory.attach`.
        file: its name in a checkpoint folder; give another to each of several callbacks.
        stop_when_drift_exceeds: a limit of `drift`, looked at as often as Trainer logs: beyond it,
            training ends as it does at its last step.

    Raises (in `trainer.train()`):
        InputError: Trainer's optimizer holds none of the protected parameters.
        StateError: something was observed but never consolidated, or the optimizer steps elsewhere
            than Trainer does (in the backward pass).
        FileError: the file in a checkpoint does not match the model.

    Examples:
        >>> from retain.integrations.transformers import RetainCallback
        >>> memory = retain.MAS(model).observe(loader).consolidate()
        >>> callback = RetainCallback(memory)  # Trainer(…, callbacks=[callback])
        >>> callback.form
        'adaptive'
    """

    # Trainer may make a callback anew from what is in a checkpoint, where there is no memory.
    _made: ClassVar[WeakSet[RetainCallback]] = WeakSet()

    def __init__(
        self,
        memory: MemoryLike | None = None,
        form: str = "adaptive",
        *,
        file: str = FILE,
        stop_when_drift_exceeds: float | None = None,
    ) -> None:
        self.stop_when_drift_exceeds: float | None = arguments.optional(
            arguments.number, "stop_when_drift_exceeds", stop_when_drift_exceeds, least=0
        )
        if memory is not None:
            refuse_other(memory, form)
        if arguments.path("file", file).name != file:
            raise InputError(f"file={shown(file)}; expected a name without folders.")
        self.memory: Any = memory
        self.form = form
        self.file = file
        self._handle: Any = None
        self._losses = self._steps = 0
        self._warned = False
        self._known = [one.memory for one in self._made if one.file == file and one.memory]
        if memory is not None:
            self._made.add(self)

    def state(self) -> dict[str, Any]:
        """What `trainer_state.json` keeps: small; the memory itself is in its own file."""
        given = {
            "form": self.form,
            "file": self.file,
            "stop_when_drift_exceeds": self.stop_when_drift_exceeds,
        }
        return {"args": given, "attributes": {}}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_more: Any
    ) -> None:
        """See that the memory fits, and take up the one of the checkpoint."""
        self._let_go()
        _go_first(self)
        if self.memory is None:
            self.memory = self._memory_of(model)
        # Trainer looks for it there when it saves, and may have read a state without it.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step > 0:
            self._take_up(args, state)
        refuse_unready(self.memory)
        self.memory.attach(optimizer, form=self.form).remove()

    def on_step_begin(self, *_given: Any, **_more: Any) -> None:
        """A step's first batch."""
        self._losses = self.memory._in_losses

    def on_pre_optimizer_step(self, *_given: Any, optimizer: Any, **_more: Any) -> None:
        """Gradients are there, accumulated and clipped."""
        self._let_go()
        if self.memory._in_losses > self._losses and not self._warned:
            self._warned = True
            warnings.warn(
                "penalty() is in the loss, but RetainCallback also adds it to every step, so it "
                "counts twice. Use one or the other.",
                stacklevel=2,
            )
        self._handle = self.memory.attach(optimizer, form=self.form)
        self._steps = self._handle.steps

    def on_optimizer_step(self, *_given: Any, optimizer: Any = None, **_more: Any) -> None:
        """The weights have moved."""
        seen = self._handle is None or self._handle.steps > self._steps
        self._let_go()
        if not seen and not getattr(optimizer, "step_was_skipped", False):
            raise StateError(
                f"Trainer's {type(optimizer).__name__} took no step when Trainer called it: it "
                "steps elsewhere (in the backward pass, as DeepSpeed and layer-wise optimizers "
                "do), where RetainCallback cannot protect it. Leave the callback out, and before "
                "training attach the memory to the optimizer that takes the steps: "
                "memory.attach(optimizer)."
            )

    def on_train_end(self, *_given: Any, **_more: Any) -> None:
        """Training is over."""
        self._let_go()

    def on_log(
        self, args: Any, state: Any, control: Any, *, logs: Any = None, **_more: Any
    ) -> None:
        """Add `penalty` and `drift` to what Trainer says about training."""
        if not logs or "loss" not in logs:
            return
        suffix = "" if "penalty" not in logs else f"_{Path(self.file).stem}"
        drift = relative_drift(self.memory)
        with torch.no_grad():
            said = {f"penalty{suffix}": float(self.memory.penalty()), f"drift{suffix}": drift}
        if not control.should_training_stop and is_beyond(drift, self.stop_when_drift_exceeds):
            control.should_training_stop = True
        logs.update(said)
        if state.log_history and state.log_history[-1].get("loss") == logs["loss"]:
            state.log_history[-1].update(said)

    def on_save(self, args: Any, state: Any, control: Any, **_more: Any) -> None:
        """Write the memory into the folder of the checkpoint."""
        # Of a memory that is sharded, every rank gives its part, and one writes.
        if state.is_world_process_zero or any_sharded(self.memory.model.parameters()):
            found = _folders(args, state)
            # A rank on another machine, that only gives its part, may not see the folder.
            newest = max(found, key=_written, default=Path(args.output_dir))
            self.memory.save(newest / self.file)

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def _memory_of(self, model: Any) -> Any:
        for memory in self._known:
            if memory.model is model:
                self._made.add(self)
                return memory
        raise StateError(
            "RetainCallback has no memory. Give it one: RetainCallback(memory); with "
            "restore_callback_states_from_checkpoint=True Trainer makes it anew, and looks for the "
            "memory in the callback that it was given."
        )

    def _take_up(self, args: Any, state: Any) -> None:
        folders = [path for path in _folders(args, state) if _is_of(path, state)]
        found = [path / self.file for path in folders if (path / self.file).is_file()]
        if found:
            take_up(self.memory, found[0])
            return
        where = f"there is no {folders[0] / self.file}" if folders else "it was not found"
        warnings.warn(
            f"Training resumes from a checkpoint without a memory: {where}. It continues with the "
            "memory that RetainCallback was given, as it is now. If you have the file elsewhere, "
            "load it with retain.load(path, model) and give that memory.",
            stacklevel=2,
        )


def _go_first(callback: RetainCallback) -> None:
    """Let what `callback` adds to the logs be there when others print and report them.

    Trainer calls its callbacks one after another, those that report before those that it was given,
    and those of `add_callback` last.
    """
    frame = sys._getframe(2)  # of Trainer's handler, which is calling us
    callbacks = getattr(frame.f_locals.get("self"), "callbacks", None)
    if not isinstance(callbacks, list) or not any(one is callback for one in callbacks):
        return
    here = next(at for at, one in enumerate(callbacks) if one is callback)
    first = next(at for at, one in enumerate(callbacks) if not _is_ours(one) or one is callback)
    callbacks.insert(first, callbacks.pop(here))


def _is_ours(callback: object) -> bool:
    return isinstance(callback, RetainCallback)


def _folders(args: Any, state: Any) -> list[Path]:
    """Where the checkpoint of the present step may be; of a search, in the folder of a trial."""
    name, root = f"checkpoint-{state.global_step}", Path(args.output_dir)
    given = [Path(args.resume_from_checkpoint)] if args.resume_from_checkpoint else []
    return [path for path in (*given, root / name, *root.glob(f"*/{name}")) if path.is_dir()]


def _written(folder: Path) -> float:
    return folder.stat().st_mtime


def _is_of(folder: Path, state: Any) -> bool:
    """Whether the checkpoint in a folder is the one that this state was read from."""
    try:
        kept = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(
        kept.get("global_step") == state.global_step
        and kept.get("log_history") == state.log_history
    )
