"""Forward passes that are watched: the sums of one batch, or what has to be known first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from retain.batches import Batch, tensors_in
from retain.local_rule.ownership import BATCH_FIRST, Ownership, evident, find
from retain.local_rule.sums import LocalSums
from retain.local_rule.watch import Layer, Watch

Place = tuple[str, int]  # a layer by its first parameter, and which use of it in a forward pass

NO_RULE = "none: not a weight or bias of a layer that ran"
HEAD = "none: head"
UNKNOWN_OWNER = "none: its rows cannot be told apart by sample"


class Passes:
    """Runs forward passes and remembers what it learned about the model's layers.

    Attributes:
        routes: what was found for every parameter.
        unknown: layers of the last pass whose rows nobody has looked up yet.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, heads: bool) -> None:
        self.heads = heads
        self.routes: dict[str, str] = dict.fromkeys(parameters, NO_RULE)
        self.unknown: dict[Place, list[str]] = {}
        self._names = {id(p): name for name, p in parameters.items()}
        self._owners: dict[Place, Ownership | None] = {}
        self._sums = LocalSums()
        self._left_out: set[str] = set()
        self._trusting = False

    @property
    def looked(self) -> bool:
        """Whether `look` has been called before."""
        return bool(self._owners)

    def run(
        self,
        samples: int,
        forward: Callable[..., Any],
        *args: Any,
        trusting: bool = False,
        **kwargs: Any,
    ) -> Any:
        """What `forward` returns; its sums are in `result()` afterwards.

        With `trusting`, a layer that was not looked up is taken as batch-first where its shape
        leaves no doubt.
        """
        self._sums.clear(samples)
        self.unknown, self._left_out, self._trusting = {}, set(), trusting
        with Watch(self._names, self._take) as watch:
            returned = forward(*args, **kwargs)
        watch.finish(tensors_in(returned))
        return returned

    def result(self) -> dict[str, Tensor] | None:
        """The sums of the last pass, or None if it has to be repeated.

        It has to where a layer is `unknown` (call `look` or `give_up`), and where a weight turned
        out to be used more than once, which is known from then on.
        """
        again = bool(self._sums.newly_repeated)
        self._sums.repeated |= self._sums.newly_repeated
        if again or self.unknown:
            return None
        with undisturbed():
            self._sums.drop(self._left_out)
            return self._sums.result()

    def not_finite(self) -> list[str]:
        """The names of the sums in `result()` with NaN or infinity in them."""
        with undisturbed():
            return self._sums.not_finite()

    def look(self, model: nn.Module, batch: Batch) -> None:
        """Find out which rows belong to which sample, by running a few samples alone."""
        alone: dict[Place, dict[int, Tensor]] = {}
        few = sorted({0, batch.samples // 2, batch.samples - 1})

        def remember(layer: Layer) -> None:
            alone.setdefault(_place(layer), {})[sample] = layer.inputs.clone()

        def compare(layer: Layer) -> None:
            rows = alone.get(_place(layer), {})
            convolution = layer.call.convolving is not None
            known = len(rows) == len(few)
            self._owners[_place(layer)] = (
                find(layer.inputs, rows, batch.samples, convolution=convolution) if known else None
            )

        for sample in few:
            self._only_watch(model, batch.take(sample, sample + 1), remember)
        self._only_watch(model, batch, compare)
        self._warn_of({place for place, owner in self._owners.items() if owner is None})

    def give_up(self) -> None:
        """Leave out the layers that are `unknown`, from now on."""
        self._warn_of(set(self.unknown))
        self._owners |= dict.fromkeys(self.unknown)
        self._left_out |= {name for names in self.unknown.values() for name in names}
        self.unknown = {}

    def _only_watch(self, model: nn.Module, batch: Batch, done: Callable[[Layer], None]) -> None:
        with Watch(
            self._names, lambda layer: None if self._spared(layer) else done(layer)
        ) as watch:
            returned = batch.call(model)
        watch.finish(tensors_in(returned))

    def _spared(self, layer: Layer) -> bool:
        return layer.head and not self.heads

    def _take(self, layer: Layer) -> None:
        if self._spared(layer):
            self._leave_out(layer, HEAD)
            return
        owner = self._owner(layer)
        if owner is not None:
            self.routes |= dict.fromkeys(layer.names, layer.description)
            with undisturbed():
                self._sums.add(layer, owner)

    def _owner(self, layer: Layer) -> Ownership | None:
        place, samples = _place(layer), self._sums.samples
        if samples == 1:
            return BATCH_FIRST
        if place not in self._owners:
            convolution = layer.call.convolving is not None
            if self._trusting and evident(layer.inputs, samples, convolution=convolution):
                return BATCH_FIRST
        else:
            owner = self._owners[place]
            if owner is None:
                self._leave_out(layer, UNKNOWN_OWNER)
                return None
            if owner.fits(layer.inputs, samples):
                return owner
        self.unknown[place] = layer.names
        return None

    def _leave_out(self, layer: Layer, reason: str) -> None:
        self._left_out |= set(layer.names)
        self.routes |= dict.fromkeys(layer.names, reason)

    def _warn_of(self, places: set[Place]) -> None:
        new = sorted({name for name, _ in places if self.routes[name] != UNKNOWN_OWNER})
        if new:
            self.routes |= dict.fromkeys(new, UNKNOWN_OWNER)
            warnings.warn(
                f"The local rule leaves out {new}: which rows of their inputs belong to which "
                "sample could not be found by running samples alone (samples influence each "
                "other, or the rows depend on the data, as those of an expert).",
                stacklevel=6,
            )


def undisturbed() -> AbstractContextManager[None]:
    """Ordinary tensors, no graph and no autocast, whatever mode the model is running in."""
    enabled = [device for device in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(device)]
    if not (enabled or torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
        return nullcontext()
    return _out_of_modes(enabled)


@contextmanager
def _out_of_modes(autocast: list[str]) -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        for device in autocast:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _place(layer: Layer) -> Place:
    return layer.names[0], layer.use
