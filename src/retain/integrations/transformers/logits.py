"""‖logits‖ of a language model, from d × d matrices: tokens × vocabulary is never made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from typing_extensions import Self

from retain import arguments
from retain.errors import ModelError, StateError
from retain.parameters import summed_in
from retain.samples.outputs import first_tensor

SAME = {8: 1e-9, 4: 1e-3, 2: 5e-2}  # relative, by the bytes of a number
LEAST = 1e-9  # of a norm: what stands for 0


def logits_norm(model: nn.Module, head: nn.Module | None = None) -> LogitsNorm:
    """An `output=` for `retain.MAS`: the norm of the logits at every position, [n, positions, 1].

    With a linear head, logits = H Wᵀ + b, and ‖logits‖² = tr(H̃ G H̃ᵀ) with G = W̃ᵀW̃, H̃ = [H, 1] and
    W̃ = [W, b]. Its gradients with respect to H and W are those of the logits themselves, so that Ω
    is the same, but nothing larger than a weight or a hidden state is held. While a memory
    observes, the head computes the logits of a single token, by which the result is checked.

        memory = retain.MAS(model, output=logits_norm(model))

    Args:
        model: a language model with a linear head, such as `AutoModelForCausalLM` gives.
        head: the head; by default what `model.get_output_embeddings()` says.

    Raises:
        ModelError: the head is not a linear layer, or not to be found.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from retain.integrations.transformers import logits_norm
        >>> config = GPT2Config(vocab_size=31, n_embd=8, n_layer=1, n_head=2, n_positions=16)
        >>> gpt2 = GPT2LMHeadModel(config)
        >>> memory = retain.MAS(gpt2, output=logits_norm(gpt2))
        >>> memory.observe([{"input_ids": torch.randint(31, (4, 9))}]).observed.samples
        4
    """
    arguments.instance("model", model, nn.Module, "a torch.nn.Module")
    find = getattr(model, "get_output_embeddings", None)
    if head is None and find is not None:
        head = find()
    if not isinstance(head, nn.Linear):
        said = "no head" if head is None else f"a head of type {type(head).__name__}"
        raise ModelError(
            f"The {type(model).__name__} has {said}; the norm of its logits can be computed "
            "without the logits only for a linear layer. Give it with logits_norm(model, head=…), "
            "or leave output= out to observe the logits themselves."
        )
    return LogitsNorm(head)


class LogitsNorm:
    """The norm of the logits; a context, inside which the head computes one token only."""

    def __init__(self, head: nn.Linear) -> None:
        self.head = head
        self._hidden: Tensor | None = None
        self._one: Tensor | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._hooks = [
            self.head.register_forward_pre_hook(self._enters),
            self.head.register_forward_hook(self._leaves),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._hidden = self._one = None

    def __call__(self, returned: Any) -> Tensor:
        """‖logits‖ at every position, [n, positions, 1], of what the model returned.

        Raises:
            ModelError: the model does something to its logits after the head.
            StateError: no forward pass was seen.
        """
        hidden, one = self._hidden, self._one
        if hidden is None or one is None:
            raise StateError(
                "logits_norm has seen no forward pass of the model's head. Give it as output= to "
                "retain.MAS, which activates it while it observes."
            )
        self._hidden = self._one = None
        kind = summed_in(hidden.dtype)
        weight_vd, bias = self.head.weight.to(kind), self.head.bias
        hidden_ntd = hidden.to(kind)
        # ‖W h + b‖² = hᵀ WᵀW h + 2 hᵀ Wᵀb + bᵀb
        square = (linear(hidden_ntd, weight_vd.T @ weight_vd) * hidden_ntd).sum(-1, keepdim=True)
        if bias is not None:
            b = bias.to(kind)
            square = square + 2 * linear(hidden_ntd, (b @ weight_vd)[None]) + b @ b
        # Its own root, so that squared again it is that sum; of 0 the gradient is 0.
        norm: Tensor = square.clamp_min(torch.finfo(kind).tiny).sqrt()
        self._check(returned, one, norm)
        return norm

    def _enters(self, _head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self._hidden = inputs[0]
        return (inputs[0][:1, :1], *inputs[1:])

    def _leaves(self, _head: nn.Module, _inputs: Any, logits: Tensor) -> None:
        self._one = logits.detach()

    def _check(self, returned: Any, one: Tensor, norm: Tensor) -> None:
        """The logits that the model returns must be those of its head."""
        given = first_tensor(returned).detach()
        expected = float(norm.detach()[0, 0, 0])
        found = float(given.reshape(-1).to(norm.dtype).norm())
        tolerance = SAME[one.dtype.itemsize] * max(expected, found, LEAST)
        if given.shape != one.shape or not abs(found - expected) <= tolerance:
            raise ModelError(
                "The logits that the model returns are not those of its head: they are scaled, "
                "capped or moved afterwards. Leave output= out to observe them as they are."
            )
