"""Watching a forward pass: each layer as it runs, and the non-linearity that follows it.

Nothing is put on modules. A `TorchFunctionMode` sees every function of torch that the model calls,
with its tensors, whatever way the model is written: modules, functions or methods, in place or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from retain.local_rule.activations import Activation, activation
from retain.local_rule.layer_calls import LayerCall, layer_call
from retain.local_rule.torch_functions import (
    FINISHING,
    Function,
    Step,
    eval_batch_norm,
    makes_numbers,
    rearranges,
    share_memory,
    tensors_given,
    written,
)

LayerUse = tuple[str, int]  # a layer: its first parameter, and which use of it in a forward pass


class After(Enum):
    """What has read a layer's output so far."""

    NOTHING = "nothing"
    ACTIVATION = "one elementwise non-linearity"
    FINISH = "what may end a model, such as softmax"
    OTHER = "anything else"


READ = (After.ACTIVATION, After.OTHER)


@dataclass(eq=False)
class WatchedLayer:
    """One use of a layer in a forward pass: y_l = σ(output).

    Attributes:
        call: what was computed.
        weight: the name of the weight, if it is wanted.
        bias: the name of the bias, if it is wanted.
        use: how often this layer's parameters were used before in the pass.
        inputs: y, as it was when the layer read it.
        output: z = W y + b, or what eval-mode batch-norm made of it.
        scale: batch-norm's factor for each output channel, if there was one.
        activation: σ; None is the identity.
        written: σ(z), as the model itself wrote it, if σσ′ is the same.
        version: which changes when something else is written to it.
        head: whether the model returns the output.
    """

    call: LayerCall
    weight: str | None
    bias: str | None
    use: int
    inputs: Tensor
    output: Tensor
    scale: Tensor | None = None
    activation: Activation | None = None
    written: Tensor | None = None
    version: int = 0
    head: bool = False
    after: After = After.NOTHING

    @property
    def names(self) -> list[str]:
        """Its wanted parameters: the weight, the bias, or both."""
        return [name for name in (self.weight, self.bias) if name is not None]

    @property
    def layer_use(self) -> LayerUse:
        """Which layer it is."""
        return self.names[0], self.use

    @property
    def half_slope_is_written(self) -> bool:
        """Whether the model itself writes σ(z)·σ′(z), since it is σ(z)."""
        return self.activation is not None and self.activation.is_half_slope

    @property
    def kept(self) -> Tensor | None:
        """σ(z)·σ′(z), if the model itself wrote it and it is still there."""
        if self.written is None:
            return None
        in_place = self.written is self.output
        return self.written if in_place or self.written._version == self.version else None

    def half_slope(self, dtype: torch.dtype) -> Tensor:
        """σ(z)·σ′(z), elementwise; not to be written to, as it may be the model's own."""
        kept = self.kept
        if kept is not None or self.activation is None:
            return (self.output if kept is None else kept).to(dtype)
        return self.activation.half_slope(self.output.to(dtype))

    @property
    def description(self) -> str:
        """The layer and what counts as part of it, such as "convolution, batch-norm, relu"."""
        parts = ["linear" if self.call.convolving is None else "convolution"]
        parts += ["batch-norm"] * (self.scale is not None)
        parts += [self.activation.name] if self.activation else []
        return ", ".join(parts)


class Noted(NamedTuple):
    """A function of torch as it was before it ran.

    Attributes:
        step: the function and what it is called with.
        call: the layer that it is, if it is one.
        readers: the layers' outputs among its arguments.
        overwritten: the layer whose output it overwrites with σσ′.
    """

    step: Step
    call: LayerCall | None
    readers: list[tuple[Tensor, WatchedLayer]]
    overwritten: WatchedLayer | None


class Watch(TorchFunctionMode):
    """Hands over every layer of a forward pass, once it is known what follows it.

    A layer is handed over when another layer runs after its output was read, before its output is
    overwritten, or at the end (`finish`). Until then its inputs and output are kept.
    """

    def __init__(self, names: Mapping[int, str], done: Callable[[WatchedLayer], None]) -> None:
        """`names`: of the wanted parameters, by `id`; `done`: takes each layer."""
        super().__init__()
        self.names = names
        self.done = done
        self.uses: Counter[int] = Counter()
        self.open: list[WatchedLayer] = []
        self.known_as: dict[
            int, tuple[Tensor, WatchedLayer]
        ] = {}  # id of a tensor: its layer's output

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What `func` returns; on the way, notes what it means for the layers."""
        kwargs = kwargs or {}
        noted = self.before(func, args, kwargs)
        result = func(*args, **kwargs)
        if noted is not None:
            self.after(noted, result)
        return result

    def before(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Noted | None:
        """What is to be known of a function before it runs; None if it means nothing."""
        call = layer_call(func, args, kwargs)
        if call is None and not self.open:
            return None
        step = Step(func, args, kwargs)
        return Noted(step, call, self._outputs_among(step), self._before_writing(step))

    def after(self, noted: Noted, result: Any) -> None:
        """Note what a function that returned `result` means for the layers."""
        if noted.overwritten is not None:
            noted.overwritten.written = noted.overwritten.output
            self._settle([noted.overwritten])
        for tensor, layer in noted.readers:
            if layer in self.open and result is not tensor and makes_numbers(result):
                self._read(layer, tensor, noted.step, result)
        if noted.call is not None:
            self._settle([layer for layer in self.open if layer.after in READ])
            self._begin(noted.call, result)

    def finish(self, returned: Iterable[Tensor]) -> None:
        """Hand over what is still open, knowing the tensors that the model returned."""
        for tensor in returned:
            if id(tensor) in self.known_as:
                layer = self.known_as[id(tensor)][1]
                layer.head = layer.call.convolving is None
        self._settle(list(self.open))

    def _begin(self, call: LayerCall, output: Tensor) -> None:
        weight = self.names.get(id(call.weight))
        bias = None if call.bias is None else self.names.get(id(call.bias))
        if weight is None and bias is None:
            return
        key = id(call.bias if weight is None else call.weight)
        layer = WatchedLayer(call, weight, bias, self.uses[key], call.inputs, output)
        self.uses[key] += 1
        self.open.append(layer)
        self.known_as[id(output)] = (output, layer)

    def _outputs_among(self, step: Step) -> list[tuple[Tensor, WatchedLayer]]:
        if not self.known_as:
            return []
        given = {id(tensor) for tensor in tensors_given(step)}
        return [self.known_as[key] for key in given & self.known_as.keys()]

    def _read(self, layer: WatchedLayer, tensor: Tensor, step: Step, result: Any) -> None:
        """Note that a function made `result` out of a layer's output, known as `tensor`."""
        first, unread = step.first is tensor, layer.after is After.NOTHING
        if first and rearranges(step):
            self.known_as[id(result)] = (result, layer)
        elif first and unread and step.func in FINISHING:
            self.known_as[id(result)] = (result, layer)
            layer.after = After.FINISH
        elif first and unread and (scale := self._batch_norm(layer, step)) is not None:
            self._forget([layer])
            self.known_as[id(result)] = (result, layer)
            layer.output, layer.scale = result, scale
        else:
            self._follow(layer, step)
            if first and layer.output is tensor:
                self._keep(layer, result)

    def _batch_norm(self, layer: WatchedLayer, step: Step) -> Tensor | None:
        if layer.scale is not None or not self._along_channels(layer, step):
            return None
        return eval_batch_norm(step)

    def _along_channels(self, layer: WatchedLayer, step: Step) -> bool:
        """Whether dimension 1 of what is read counts the layer's output channels."""
        output = layer.output
        return step.first is output and (layer.call.convolving is not None or output.ndim == 2)

    def _follow(self, layer: WatchedLayer, step: Step) -> None:
        """Note σ, if this is the only function so far that reads the output and it is one."""
        known = self.known_as.get(id(step.first), (None, None))[1]
        sigma = activation(*step) if known is layer else None
        if sigma and sigma.along_channels and not self._along_channels(layer, step):
            sigma = None
        alone = layer.after is not After.NOTHING or sigma is None
        layer.after = After.OTHER if alone else After.ACTIVATION
        layer.activation, layer.written = None if alone else sigma, None

    def _keep(self, layer: WatchedLayer, result: Tensor) -> None:
        """Keep σ(z) instead of making it once more, if σσ′ is the same and it stays so."""
        if layer.half_slope_is_written and not result.is_inference():  # which has no version
            layer.written, layer.version = result, result._version

    def _before_writing(self, step: Step) -> WatchedLayer | None:
        """What is about to be overwritten is used first, or copied.

        Returns: the layer whose output is overwritten with σσ′, which is used afterwards.
        """
        target, found = written(step) if self.open else None, None
        if target is None:
            return None
        for layer in list(self.open):
            if share_memory(layer.inputs, target):
                layer.inputs = layer.inputs.clone()
            if layer.written is not None and share_memory(layer.written, target):
                layer.written = None
            if share_memory(layer.output, target):
                self._follow(layer, step)
                if layer.half_slope_is_written:
                    found = layer
                else:
                    self._settle([layer])
        return found

    def _settle(self, layers: list[WatchedLayer]) -> None:
        self._forget(layers)
        for layer in layers:
            self.open.remove(layer)
            self.done(layer)

    def _forget(self, layers: list[WatchedLayer]) -> None:
        """Reading the tensors by which these layers' outputs are known means nothing any more."""
        kept = {k: (t, layer) for k, (t, layer) in self.known_as.items() if layer not in layers}
        self.known_as = kept
