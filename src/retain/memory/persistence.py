"""A memory as plain data: in a checkpoint, in a file, as a copy."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

from typing_extensions import Self

from retain import files
from retain.errors import InputError, StateError
from retain.memory.plain_data import described, restored, split
from retain.memory.remembered import Remembered
from retain.memory.state import flattened

# Handles hold optimizers, buffers are large, and what was looked up is of the model here.
NOT_COPIED = ("_attachments", "_made", "_known", "_guard")


class Persistence(Remembered):
    """The part of a memory that is carried, kept and copied."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers and its settings, to be carried in a training checkpoint.

        Plain data and tensors: `torch.save` writes it, and `torch.load(path, weights_only=True)`
        reads it. `state["tensors"]` is kind -> name of the parameter -> tensor; the kinds are
        `"importance.0"` and `"anchor.0"` (Ω and θ*; with a term per task 1, 2, … as well),
        `"observed"` (sums since the last `consolidate()`), `"observed_at"` (a few elements of the
        weights that they are of), and what a method needs besides.
        An `output=` function is not in it.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> torch.save({"model": model.state_dict(), "memory": memory.state_dict()}, "last.pt")
        """
        self._guard.look()
        tensors, header = self._state.pack()
        more = {**tensors, **self._more_tensors()}
        return {"format": files.VERSION, **header, **described(self), "tensors": more}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Become the memory that `state_dict()` was taken from, its settings included.

        The model, handles and an `output=` function stay as they are. Load the model first.

        Args:
            state: what `state_dict()` returned, also after `torch.save` and `torch.load`.
            strict: refuse a model with parameters that the state does not know; with False, these
                are free until something is observed for them.

        Raises:
            InputError: it is no state of this kind of memory, or does not match the model, with
                every missing, unexpected and misshapen name; nothing is changed then.

        Examples:
            >>> state = retain.MAS(model, strength=2.0).observe(loader).consolidate().state_dict()
            >>> memory = retain.MAS(model)
            >>> memory.load_state_dict(state)
            >>> memory.strength, memory.tasks
            (2.0, 1)
        """
        tensors, header = split(state, type(self))
        made = restored(
            type(self),
            self.model,
            tensors,
            header,
            refusal=lambda said: InputError(f"The state {said}"),
            output=self.output,
            strict=strict,
            offload=self.storage.folder,
        )
        made._state = replace(made._state, terms=self.storage.put(made._state.terms))
        carried = ("_strength", "selection", "storage", "_state", "_routes", "_output_is_lost")
        for name in (*carried, *self._arguments.values(), *self._further):
            setattr(self, name, getattr(made, name))
        self._made = None
        self._guard.anchored()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to `path`, a safetensors file keyed by parameter name; `load` reads it.

        What was observed but not consolidated is in it too. An `output=` function cannot be: give
        it to `retain.load` again.

        Raises:
            FileError: it cannot be written; what was there is untouched.

        Examples:
            >>> retain.MAS(model).observe(loader).consolidate().save("memory.safetensors")
            >>> retain.load("memory.safetensors", model).importance.samples
            32
        """
        self._guard.look()
        tensors, header = self._state.pack()
        flat = flattened({**tensors, **self._more_tensors()})
        files.write(path, "memory", flat, {**header, **described(self)})

    # ---- copies ----

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = memo[id(self)] = copy(self)
        mine = {name: value for name, value in vars(twin).items() if name not in NOT_COPIED}
        twin.__dict__.update(deepcopy(mine, memo))
        twin._watch()
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        try:
            pickle.dumps(self.output)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise StateError(
                "A memory with output=… can be pickled only if the function can: define it at the "
                "top of a module, or carry state_dict() instead."
            ) from error
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        """All but what a copy makes anew; sums are copies."""
        running = self._state.running
        state = replace(self._state, running=running.copy() if running else None)
        return {**self.__dict__, "_state": state, **dict.fromkeys(NOT_COPIED)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch()
