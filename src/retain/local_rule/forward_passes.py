"""Forward passes that are watched: the sums of one batch, or what has to be known first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from retain.local_rule.layer_sums import NOTHING_YET, LocalSums, Met
from retain.local_rule.ownership import BATCH_FIRST, Ownership, evident, find
from retain.local_rule.padding import that_exclude, unpadded
from retain.local_rule.watch import LayerUse, Watch, WatchedLayer
from retain.samples.batches import Batch, tensors_in
from retain.saying import warn

Say = Callable[[str], None]

NO_RULE = "none: not a weight or bias of a layer that ran"
HEAD = "none: head"
UNKNOWN_OWNER = "none: its rows cannot be told apart by sample"


class Passes:
    """What is known about a model's layers, which every forward pass may add to.

    Passes may run in several threads at once; each has sums of its own.

    Attributes:
        routes: what was found for every parameter.
        heads: whether heads take part.
        parameters: the wanted ones, by name.
        names: the same, by `id`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, heads: bool) -> None:
        self.heads = heads
        self.routes: dict[str, str] = dict.fromkeys(parameters, NO_RULE)
        self.parameters = dict(parameters)
        self.names = {id(p): name for name, p in parameters.items()}
        self._owners: dict[LayerUse, Ownership | None] = {}
        self._met = NOTHING_YET
        self._spare: list[LocalSums] = []  # their memory is as large as the weights, and kept
        self._learning = threading.Lock()

    @property
    def looked(self) -> bool:
        """Whether `look` has been called before."""
        return bool(self._owners)

    @contextmanager
    def one(self, samples: int, masks: Sequence[Tensor] = ()) -> Iterator[Pass]:
        """A pass of a model that serves; its sums are good until the block is left.

        A layer that was not looked up is taken as batch-first where its shape leaves no doubt.
        """
        try:
            sums = self._spare.pop()
        except IndexError:
            sums = LocalSums()
        try:
            yield self.begun(sums, samples, masks, trusting=True)
        finally:
            self._spare.append(sums)

    def begun(
        self,
        sums: LocalSums,
        samples: int,
        masks: Sequence[Tensor] = (),
        *,
        trusting: bool = False,
    ) -> Pass:
        """A pass whose gradients are summed up in `sums`, where `masks` [n, T] are True."""
        sums.clear(samples, self._met)
        return Pass(self, sums, that_exclude(masks), trusting)

    def owner(self, place: LayerUse) -> tuple[bool, Ownership | None]:
        """Whether somebody looked for the samples of this layer, and what was found."""
        return place in self._owners, self._owners.get(place)

    def have_met(self, met: Met) -> None:
        """From now on, expect this of layers."""
        with self._learning:
            self._met |= met

    def look(self, model: nn.Module, batch: Batch, say: Say | None = None) -> None:
        """Find out which rows belong to which sample, by running a few samples alone.

        `say` takes what is to be said of layers that had to be left out, instead of a warning.
        """
        alone: dict[LayerUse, dict[int, Tensor]] = {}
        owners: dict[LayerUse, Ownership | None] = {}
        few = sorted({0, batch.samples // 2, batch.samples - 1})

        def remember(layer: WatchedLayer) -> None:
            alone.setdefault(layer.layer_use, {})[sample] = layer.inputs.clone()

        def compare(layer: WatchedLayer) -> None:
            rows = alone.get(layer.layer_use, {})
            convolution = layer.call.convolving is not None
            known = len(rows) == len(few)
            owners[layer.layer_use] = (
                find(layer.inputs, rows, batch.samples, convolution=convolution) if known else None
            )

        for sample in few:
            self._only_watch(model, batch.take(sample, sample + 1), remember)
        self._only_watch(model, batch, compare)
        self._learn(owners, say)

    def give_up(self, places: Iterable[LayerUse], say: Say | None = None) -> None:
        """Leave out these layers, from now on."""
        self._learn(dict.fromkeys(places), say)

    def spared(self, layer: WatchedLayer) -> bool:
        """Whether it is a head, and heads take no part."""
        return layer.head and not self.heads

    def _only_watch(
        self, model: nn.Module, batch: Batch, done: Callable[[WatchedLayer], None]
    ) -> None:
        watch = Watch(self.names, lambda layer: None if self.spared(layer) else done(layer))
        with watch:
            returned = batch.copied().call(model)  # it may write to its inputs
        watch.finish(tensors_in(returned))

    def _learn(self, owners: Mapping[LayerUse, Ownership | None], say: Say | None) -> None:
        lost = {name for (name, _), owner in owners.items() if owner is None}
        with self._learning:
            self._owners |= owners
            new = sorted(name for name in lost if self.routes[name] != UNKNOWN_OWNER)
            self.routes |= dict.fromkeys(new, UNKNOWN_OWNER)
        if not new:
            return
        message = (
            f"The local rule leaves out {new}: which rows of their inputs belong to which sample "
            "could not be found by running samples alone (samples influence each other, or the "
            "rows depend on the data, as those of an expert)."
        )
        if say is None:
            warn(message)
        else:
            say(message)


class Pass:
    """One forward pass, as it is watched: `with one.watch: …`, then `finish`, then `result`.

    Attributes:
        watch: the mode to run it in.
        unknown: layers whose rows nobody has looked up yet, and their parameters.
    """

    def __init__(
        self, passes: Passes, sums: LocalSums, masks: Sequence[Tensor], trusting: bool
    ) -> None:
        self.passes = passes
        self.unknown: dict[LayerUse, list[str]] = {}
        self._sums = sums
        self._masks = masks
        self._trusting = trusting
        self._left_out: set[str] = set()

    def begun_again(self) -> Pass:
        """The same pass once more, as nothing was added yet."""
        return self.passes.begun(
            self._sums, self._sums.samples, self._masks, trusting=self._trusting
        )

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `forward` returns; its sums are in `result()` afterwards."""
        watch = Watch(self.passes.names, self.take)
        with watch:
            returned = forward(*args, **kwargs)
        watch.finish(tensors_in(returned))
        return returned

    def take(self, layer: WatchedLayer) -> None:
        """Add a layer's gradients, or note what has to be known before that."""
        if self.passes.spared(layer):
            self._leave_out(layer.names, HEAD)
            return
        owner = self._owner(layer)
        if owner is not None:
            self.passes.routes |= dict.fromkeys(layer.names, layer.description)
            with undisturbed():
                if self._masks:
                    layer = unpadded(layer, owner, self._sums.samples, self._masks)
                self._sums.add(layer, owner)

    def result(self) -> dict[str, Tensor] | None:
        """The sums of the pass, or None if it has to be repeated.

        It has to where a layer is `unknown` (let the passes `look` for it, or `leave_out_unknown`),
        and where a weight turned out to be used more than once, or the inputs of a layer to have
        negative numbers in them, if that had to be known before. From then on it is.
        """
        with undisturbed():
            newly_met = self._sums.newly_met()
            self.passes.have_met(newly_met)
            if self.unknown or newly_met != NOTHING_YET:
                return None
            self._sums.drop(self._left_out)
            return self._sums.result()

    def not_finite(self) -> list[str]:
        """The names of the sums in `result()` with NaN or infinity in them."""
        with undisturbed():
            return self._sums.not_finite()

    def leave_out_unknown(self, say: Say | None = None) -> None:
        """Go on without the layers that are `unknown`, in this pass and from now on."""
        self.passes.give_up(self.unknown, say)
        self._left_out |= {name for names in self.unknown.values() for name in names}
        self.unknown = {}

    def _owner(self, layer: WatchedLayer) -> Ownership | None:
        samples = self._sums.samples
        if samples == 1:
            return BATCH_FIRST
        looked, owner = self.passes.owner(layer.layer_use)
        if not looked:
            convolution = layer.call.convolving is not None
            if self._trusting and evident(layer.inputs, samples, convolution=convolution):
                return BATCH_FIRST
        elif owner is None:
            self._leave_out(layer.names, UNKNOWN_OWNER)
            return None
        elif owner.fits(layer.inputs, samples):
            return owner
        self.unknown[layer.layer_use] = layer.names
        return None

    def _leave_out(self, names: list[str], reason: str) -> None:
        self._left_out |= set(names)
        self.passes.routes |= dict.fromkeys(names, reason)


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
