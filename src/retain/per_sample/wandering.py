"""Operations that provably leave a sample's rows in their places, whatever the data are.

A layout that was right for one batch is right for every other that makes the same graph, if nothing
in that graph sends rows to places that the *data* choose. Sizes, dimensions and shifts are part of
what makes a graph the same; indices, masks and matrices are not. The lists here say where looking
again can be saved. What they do not name (sorting, scattering, indices, sparse products, a user's
own `Function`) is looked at again in every batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor
from torch.autograd.graph import Node

from retain.parameters import address
from retain.per_sample.graph import Graph, Output
from retain.per_sample.layout import Blocks, find_blocks
from retain.per_sample.nodes import is_custom, operation, shape_of

# Element by element.
ELEMENTWISE = {
    *("Abs", "Acos", "Add", "Addcdiv", "Addcmul", "Alias", "Angle", "Asin", "Atan", "Atan2"),
    *("Ceil", "Celu", "Clamp", "ClampMax", "ClampMin", "Clone", "Complex", "Conj", "Contiguous"),
    *("Copy", "Cos", "Cosh", "Detach", "Div", "Elu", "Erf", "Erfc", "Exp", "Exp2", "Expm1"),
    *("Floor", "Fmax", "Fmin", "Frac", "Gelu", "Glu", "Hardshrink", "Hardsigmoid", "Hardswish"),
    *("Hardtanh", "Hypot", "Imag", "LeakyRelu", "Lerp", "Lgamma", "Log", "Log10", "Log1P", "Log2"),
    *("LogSigmoid", "Logaddexp", "MaskedFill", "Maximum", "Minimum", "Mish", "Mul", "NanToNum"),
    *("Neg", "Polar", "Pow", "PreluKernel", "Real", "Reciprocal", "Relu", "Round", "Rsqrt", "Rsub"),
    *("Selu", "Sgn", "Sigmoid", "Sign", "Silu", "Sin", "Sinh", "Softplus", "Softshrink", "Sqrt"),
    *("Square", "Sub", "Tan", "Tanh", "ThnnFusedLstmCell", "Threshold", "ToCopy", "Trunc"),
    *("MseLoss", "ViewAsComplex", "ViewAsReal", "Where", "Xlogy"),
}
# The same elements, in places that sizes and dimensions alone decide.
REARRANGING = {
    *("AsStrided", "ChannelShuffle", "Col2Im", "ConstantPadNd", "Diagonal", "Expand", "Im2Col"),
    *("Narrow", "Permute", "PixelShuffle", "PixelUnshuffle", "Select", "Slice"),
    *("ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D"),
    *("ReplicationPad1D", "ReplicationPad2D", "ReplicationPad3D"),
    *("Split", "SplitWithSizes", "Squeeze", "T", "Transpose", "Tril", "Triu", "Unbind", "Unfold"),
    *("UnsafeSplit", "UnsafeSplitWithSizes", "UnsafeView", "Unsqueeze", "View"),
}
# Sums, norms, pools and transforms along dimensions that are named. (Along the samples they would
# mix them, and outputs tell.)
ALONG_DIMENSIONS = {
    *("AdaptiveAvgPool1D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D"),
    *("AdaptiveMaxPool3D", "AffineGridGenerator", "Amax", "Amin", "AvgPool2D", "AvgPool3D"),
    *("CudnnBatchNorm", "Cumprod", "Cumsum", "FftC2C", "FftC2R", "FftR2C", "FusedRmsNorm"),
    *("GridSampler2D", "GridSampler3D", "LinalgVectorNorm", "LogSoftmax", "Logsumexp", "Max"),
    *("MaxPool2DWithIndices", "MaxPool3DWithIndices", "Mean", "Min", "NativeBatchNorm"),
    *("NativeGroupNorm", "NativeLayerNorm", "Norm", "Prod", "SafeSoftmax", "Softmax", "Std", "Sum"),
    *("UpsampleBicubic2D", "UpsampleBilinear2D", "UpsampleLinear1D", "UpsampleNearest1D"),
    *("UpsampleNearest2D", "UpsampleNearest3D", "UpsampleTrilinear3D", "Var"),
}
KEEPING = ELEMENTWISE | REARRANGING | ALONG_DIMENSIONS
# Rows of a table of parameters: what is looked up decides nothing about where it goes.
LOOKING_UP = {"Embedding", "EmbeddingBag", "Index", "IndexSelect", "Gather", "Repeat"}
# Products keep rows where one factor is a weight, under the names of the other's saved forms;
# with two factors from the data, one may put the other's rows in any order,
PRODUCTS = {
    "Mm": ("_saved_self", "_saved_mat2"),
    "Addmm": ("_saved_mat1", "_saved_mat2"),
    "Mv": ("_saved_self",),
    "Convolution": ("_saved_weight",),
    "Bmm": ("_saved_self", "_saved_mat2"),
    "Baddbmm": ("_saved_batch1", "_saved_batch2"),
}
# unless the samples lie along these first dimensions, in which they are multiplied apart.
APART = {"Bmm": 1, "Baddbmm": 1}
ATTENTION, HEADS = "ScaledDotProduct", 2  # [n, heads, tokens, …]
# Rows side by side, or moved: of no account unless it is along the samples.
# Where the data choose, they choose places along that dimension only.
CHOOSING = {"Cummax", "Cummin", "Gather", "IndexAdd", "IndexCopy", "IndexSelect", "Scatter"}
MOVING = {
    **dict.fromkeys(("Cat", "Stack", "ScatterAdd", "Sort", "Topk", *CHOOSING), "_saved_dim"),
    **dict.fromkeys(("Flip", "Roll"), "_saved_dims"),
}


def may_move(graph: Graph, node: Node, samples: int) -> bool:
    """Whether along which dimension the samples lie decides if it keeps rows in their places."""
    if is_custom(node):
        return False
    name = operation(node)
    numbered = graph.position[node] in graph.numbered
    return (
        (numbered and samples == shape_of(node)[0])
        or name in APART
        or name in MOVING
        or name.startswith(ATTENTION)
    )


def wandering(
    graph: Graph,
    between: Collection[Node],
    held: Collection[int],
    moved: Mapping[Output, list[Tensor]],
    weights: list[Tensor],
) -> tuple[str, ...]:
    """The names of operations that may put rows elsewhere in another batch; none if all keep them.

    `between` are nodes of parameters alone, `held` the storages of the model's parameters, and
    `moved` what the probing passes with these `weights` show of the nodes that may move rows.
    """
    found: dict[str, None] = {}
    unsure: set[Node] = set()
    for node in graph.order:
        name = operation(node)
        if node in between or not node.next_functions:
            continue
        if not is_custom(node):
            if name in KEEPING or (name in LOOKING_UP and node.next_functions[0][0] in between):
                continue
            if name in PRODUCTS and _with_a_weight(node, between, held):
                continue
            if may_move(graph, node, len(weights[0])):
                unsure.add(node)
                continue
        found[name] = None
    if not found:
        for (node, output), gradients in moved.items():
            if node in unsure and _along_the_samples(graph, node, output, gradients, weights):
                found[operation(node)] = None
    return tuple(found)


def _with_a_weight(node: Node, between: Collection[Node], held: Collection[int]) -> bool:
    """Whether a factor is a parameter, or made of some, or one that is frozen."""
    first = 1 if operation(node) in ("Addmm", "Baddbmm") else 0  # what is added is no factor
    if any(below in between for below, _ in node.next_functions[first : first + 2]):
        return True
    saved = (getattr(node, name, None) for name in PRODUCTS[operation(node)])
    return any(isinstance(s, Tensor) and address(s) in held for s in saved)


def _along_the_samples(
    graph: Graph, node: Node, output: int, gradients: list[Tensor], weights: list[Tensor]
) -> bool:
    """Whether this operation acts along the dimension of the samples, or may."""
    if not gradients:
        return False
    layouts = find_blocks(gradients, weights, graph.precision)
    return not layouts or any(_acts_along(node, output, layout) for layout in layouts)


def _acts_along(node: Node, output: int, layout: Blocks) -> bool:
    name, dims = operation(node), len(shape_of(node, output))
    if name == "Index":
        return layout.dim != 0 or layout.outer != 1 or layout.inner != 1
    if name in MOVING:
        given = getattr(node, MOVING[name])
        moved = given if isinstance(given, (tuple, list)) else (given,)
        return not moved or layout.dim in {_signed(dim) % dims for dim in moved}
    return layout.dim >= APART.get(name, HEADS)


def _signed(number: int) -> int:
    """Autograd hands some integers out as unsigned 64-bit."""
    return number - (1 << 64) if number >= 1 << 63 else number
