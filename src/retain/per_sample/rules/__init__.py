"""Closed forms: how one operation's weight gradient splits into samples.

A rule is a function `(node, index, grad, layout, shape) -> Contribution | None`: `node` is the
operation in the autograd graph, `index` which of its inputs leads to the parameter, `grad` the
gradient that arrives at its (first) result, `layout` which sample owns which element of `grad`, and
`shape` what the input has. None says that the rule does not apply; the masked backward, slower but
just as exact, is used instead. Rules only save time: a missing rule is never an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retain.per_sample.contributions import Contribution
from retain.per_sample.layout import Layout
from retain.per_sample.rules import convolution, elementwise, embedding, linear, norms

Rule = Callable[[Any, int, Tensor, Layout, torch.Size], Contribution | None]

# The name of the operation, as `graph.operation` gives it → its rule.
RULES: dict[str, Rule] = {
    "Addmm": linear.addmm,
    "Mm": linear.mm,
    "Bmm": linear.bmm,
    "Baddbmm": linear.baddbmm,
    "GroupedMm": linear.grouped_mm,
    "Mv": linear.mv,
    "Convolution": convolution.convolution,
    "Embedding": embedding.embedding,
    "EmbeddingBag": embedding.embedding_bag,
    "Index": embedding.indexing,
    "IndexSelect": embedding.index_select,
    "Add": elementwise.add,
    "Sub": elementwise.sub,
    "Mul": elementwise.mul,
    "Div": elementwise.div,
    "Addcmul": elementwise.addcmul,
    "Expand": elementwise.expand,
    "Repeat": elementwise.repeat,
    "PreluKernel": elementwise.prelu,
    "NativeLayerNorm": norms.layer_norm,
    "NativeGroupNorm": norms.group_norm,
    "NativeBatchNorm": norms.batch_norm,
}

# The same, of gradients that are complex numbers.
COMPLEX_RULES: dict[str, Rule] = dict.fromkeys(("Mm", "Bmm"), linear.complex_product)

__all__ = ["COMPLEX_RULES", "RULES", "Rule"]
