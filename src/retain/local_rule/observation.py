"""One call of a model that serves, as it is observed: beside the answer, never in its way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from retain.borrowed import same_random_state
from retain.local_rule.forward_passes import Passes
from retain.local_rule.torch_functions import Function
from retain.local_rule.watch import Noted, Watch, WatchedLayer
from retain.samples.batches import Batch, tensors_in

InEvalMode = Callable[[], AbstractContextManager[None]]
PLAIN = (torch.Tensor, type(None), bool, int, float, str, torch.dtype, torch.device)


class Bystander(Watch):
    """A watch that never gets in the way: after something went wrong in it, it sees nothing more.

    Attributes:
        failed: what went wrong.
    """

    def __init__(self, observed: list[Observation]) -> None:
        """Layers are handed to all of `observed`, each of which may want other parameters."""
        names: dict[int, str] = {}
        for each in observed:
            names |= each.names
        super().__init__(names, self._hand_out)
        self.observed = observed
        self.failed: Exception | None = None

    def _hand_out(self, layer: WatchedLayer) -> None:
        for each in self.observed:
            each.take(layer)

    def before(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Noted | None:
        """What is to be known of a function before it runs, as far as it can be seen."""
        if self.failed is None:
            try:
                return super().before(func, args, kwargs)
            except Exception as error:
                self.failed = error
        return None

    def after(self, noted: Noted, result: Any) -> None:
        """Note what a function means for the layers, as far as it can be seen."""
        try:
            super().after(noted, result)
        except Exception as error:
            self.failed = error

    def answered(self, returned: Any) -> None:
        """The model returned this."""
        if self.failed is None:
            try:
                self.finish(tensors_in(returned))
            except Exception as error:
                self.failed = error


class Observation:
    """One call that one listener observes. Nothing that goes wrong in it is raised.

    Attributes:
        names: of the parameters that the listener wants, by `id`.
        samples: how many samples the call is for.
        sums: what is to be committed, if anything.
        again: whether the next call is to be observed instead.
        tell: takes this observation when the call is over, with or without an answer.
    """

    def __init__(
        self,
        passes: Passes,
        model: nn.Module,
        batch: Batch,
        note: Callable[[str], None],
        *,
        first: bool,
    ) -> None:
        """What is needed of the listener.

        Args:
            passes: what is known of the model's layers.
            model: the model, to run a copy of it where more has to be known.
            batch: what it was called with.
            note: takes what is to be said when the listener does not listen any more.
            first: something may be met for the first time, and looked at in a further pass.
        """
        self.names = passes.names
        self.samples = batch.samples
        self.sums: dict[str, Tensor] | None = None
        self.again = True
        self._passes = passes
        self._model = model
        self.tell: Callable[[Observation], None] | None = None
        self._note = note
        self._first = first
        self._repeatable = first and _only_data((batch.args, batch.kwargs))
        self._batch = _copied(batch) if self._repeatable else batch
        self._failed: Exception | None = None
        self._lent = ExitStack()
        self._one = self._lent.enter_context(passes.one(batch.samples, batch.masks()))

    def take(self, layer: WatchedLayer) -> None:
        """Add a layer that ran."""
        if self._failed is not None:
            return
        try:
            wanted = [self.names.get(id(p)) for p in (layer.call.weight, layer.call.bias)]
            if [layer.weight, layer.bias] != wanted:  # somebody else's, too
                layer = replace(layer, weight=wanted[0], bias=wanted[1])
            if layer.names:
                self._one.take(layer)
        except Exception as error:
            self._failed = error

    def answered(self, failed: Exception | None) -> None:
        """The model has answered: make the sums, unless watching `failed`."""
        self.again = False
        try:
            if failed := failed or self._failed:
                raise failed
            sums = self._one.result()
            if sums is None:
                sums = self._learned()
            if sums is None:
                self.again = True
            elif not sums:
                self._note("no layer of this call has a local rule")
            elif broken := self._one.not_finite():
                self._note(f"NaN or infinity in the inputs or outputs of the layers of {broken}")
            else:
                self.sums = sums
        except Exception as error:
            self._note(f"{type(error).__name__}: {error}")

    def over(self) -> None:
        """The call is over, with or without an answer."""
        try:
            if self.tell is not None:
                self.tell(self)
        except Exception as error:
            self._note(f"{type(error).__name__}: {error}")
        self._lent.close()

    def _learned(self) -> dict[str, Tensor] | None:
        """The sums after what was met for the first time was looked at, if it can be."""
        if not self._first:
            return None
        if self._repeatable:
            try:
                with _twin(self._model) as (twin, in_eval_mode), torch.no_grad():
                    if self._one.unknown:
                        with in_eval_mode():
                            self._passes.look(twin, self._batch, self._note)
                    return self._run_again(twin)
            except Exception as error:
                self._note(f"samples could not be run alone: {error}")
        self._one.leave_out_unknown(self._note)
        return self._one.result()

    def _run_again(self, twin: nn.Module) -> dict[str, Tensor] | None:
        while True:
            self._one = self._one.begun_again()
            self._one.run(self._batch.copied().call, twin)
            if self._one.unknown:
                self._one.leave_out_unknown(self._note)
            if (sums := self._one.result()) is not None:
                return sums


@contextmanager
def _twin(
    model: nn.Module,
) -> Iterator[tuple[nn.Module, InEvalMode]]:
    """A copy of the model that shares its parameters, and a way to run it in eval mode."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    modes = {module: module.training for module in twin.modules()}

    @contextmanager
    def in_eval_mode() -> Iterator[None]:
        twin.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    with torch.inference_mode(False), same_random_state(model):
        yield twin, in_eval_mode


def _copied(batch: Batch) -> Batch:
    """The batch in tensors of its own, which the model that serves cannot change."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(copied, value))
        return type(value)(map(copied, value)) if isinstance(value, (tuple, list)) else value

    with torch.inference_mode(False):
        return replace(batch, args=copied(batch.args), kwargs=copied(batch.kwargs))


def _only_data(value: object) -> bool:
    """Whether a second call with the same arguments cannot change them."""
    if isinstance(value, Mapping):
        return all(map(_only_data, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(_only_data, value))
    return isinstance(value, PLAIN)
