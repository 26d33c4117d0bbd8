"""Every closed form against the slow truth, on random shapes; and that it is the one that ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retain.borrowed import borrowed
from retain.per_sample import PerSample, sums_by_loop
from retain.per_sample.rules import RULES
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

N = 4


@dataclass
class Case:
    """A parameter's shape, the input of n samples, and the function in which they meet."""

    rule: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]  # of one sample
    meet: Callable[[Tensor, Tensor], Tensor]  # (x [n, …], p) → [n, …]
    route: str = "elementwise"
    tokens: int = 0  # > 0: the inputs are token numbers below this
    dtype: torch.dtype = torch.float64


def spectrum(x: Tensor) -> Tensor:
    """Complex numbers of which neither part is zero."""
    return torch.complex(x, x.flip(-1).sin())


def experts(x: Tensor, p: Tensor, steps: list[int]) -> Tensor:
    """So many steps of every sample for each expert, those of an expert behind one another."""
    n, t, _ = x.shape
    ends = n * torch.tensor(steps, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    rows = F.grouped_mm(x.transpose(0, 1).flatten(0, 1), p, offs=ends)
    return rows.view(t, n, -1).transpose(0, 1)


def conv(
    stride: int = 1, groups: int = 1, dilation: int = 1, padding: int = 1
) -> Callable[[Tensor, Tensor], Tensor]:
    def meet(x: Tensor, p: Tensor) -> Tensor:
        function = [F.conv1d, F.conv2d, F.conv3d][p.ndim - 3]
        return function(x, p, stride=stride, groups=groups, dilation=dilation, padding=padding)

    return meet


def sequence_first(x: Tensor, p: Tensor) -> Tensor:
    return F.linear(x.transpose(0, 1).contiguous(), p).transpose(0, 1)


CASES = {
    "mm, one row per sample": Case("Mm", (3, 5), (5,), lambda x, p: x @ p.T, "linear"),
    "mm, tokens": Case("Mm", (3, 5), (6, 5), F.linear, "linear"),
    "mm, sequence first": Case("Mm", (3, 5), (6, 5), sequence_first, "linear"),
    "mm, large": Case("Mm", (700, 400), (3, 400), F.linear, "linear"),
    "mm, batch in columns": Case("Mm", (3, 5), (5,), lambda x, p: (p @ x.T).T, "linear"),
    "addmm, scaled": Case(
        "Addmm",
        (5, 3),
        (5,),
        lambda x, p: torch.addmm(torch.ones(3, dtype=x.dtype), x, p, beta=2, alpha=3),
        "linear",
    ),
    "addmm, bias": Case(
        "Addmm", (3,), (2, 5), lambda x, p: F.linear(x, torch.ones(3, 5, dtype=x.dtype), p)
    ),
    "bmm, one weight for all": Case(
        "Bmm", (3, 50), (50, 2), lambda x, p: torch.bmm(p.expand(len(x), -1, -1), x), "linear"
    ),
    "bmm, einsum": Case(
        "Bmm", (2, 5, 3), (6, 5), lambda x, p: torch.einsum("nti,hio->nhto", x, p), "linear"
    ),
    "bmm, experts": Case(
        "Bmm",
        (2, 5, 3),
        (2, 5),
        lambda x, p: torch.bmm(x.transpose(0, 1), p).movedim(1, 0),
        "linear",
    ),
    "baddbmm, experts": Case(
        "Baddbmm",
        (2, 5, 3),
        (2, 5),
        lambda x, p: torch.baddbmm(
            x[..., :3].transpose(0, 1), x.transpose(0, 1), p, beta=2, alpha=0.7
        ).movedim(1, 0),
        "linear",
    ),
    "baddbmm, what is added": Case(
        "Baddbmm",
        (2, 1, 3),
        (2, 5),
        lambda x, p: torch.baddbmm(
            p, x.transpose(0, 1), x[0, :, :, None].expand(2, 5, 3) * 0 + 1, beta=2
        ).movedim(1, 0),
    ),
    "mv": Case("Mv", (5,), (5,), lambda x, p: (x @ p)[:, None], "linear"),
    "mv, tokens": Case(
        "Mv", (5,), (3, 5), lambda x, p: (x.flatten(0, 1) @ p).view(-1, 3), "linear"
    ),
    "conv1d": Case("Convolution", (4, 3, 3), (3, 9), conv(), "convolution"),
    "conv2d, strided": Case("Convolution", (4, 3, 3, 3), (3, 9, 9), conv(2), "convolution"),
    "conv2d, many pixels": Case("Convolution", (4, 3, 3, 3), (3, 20, 20), conv(), "convolution"),
    "conv2d, depthwise": Case(
        "Convolution", (6, 1, 3, 3), (6, 5, 5), conv(groups=6), "convolution"
    ),
    "conv2d, depthwise, many pixels": Case(
        "Convolution", (3, 1, 3, 3), (3, 20, 20), conv(groups=3), "convolution"
    ),
    "conv2d, depthwise, a large kernel with stride": Case(
        "Convolution", (6, 1, 5, 4), (6, 20, 21), conv(2, 6, padding=2), "convolution"
    ),
    "conv2d, depthwise, a large kernel with stride and dilation": Case(
        "Convolution", (4, 1, 7, 5), (4, 40, 37), conv(3, 4, 2, padding=0), "convolution"
    ),
    "conv2d, groups and dilation": Case(
        "Convolution", (4, 3, 3, 3), (6, 8, 8), conv(groups=2, dilation=2), "convolution"
    ),
    "conv1d, pointwise with stride": Case(
        "Convolution", (4, 3, 1), (3, 9), conv(2, padding=0), "convolution"
    ),
    "conv3d": Case("Convolution", (2, 3, 3, 3, 3), (3, 4, 4, 4), conv(), "convolution"),
    "transposed": Case(
        "Convolution",
        (3, 4, 3, 3),
        (3, 5, 5),
        lambda x, p: F.conv_transpose2d(x, p, stride=2, output_padding=1),
        "convolution",
    ),
    "convolution's bias": Case(
        "Convolution", (4,), (3, 5, 5), lambda x, p: F.conv2d(x, torch.ones(4, 3, 3, 3).to(x), p)
    ),
    "complex": Case(
        "Mm",
        (4, 3, 2),
        (4,),
        lambda x, p: torch.view_as_real(spectrum(x) @ torch.view_as_complex(p)),
        "linear",
    ),
    "complex, the batch in columns": Case(
        "Mm",
        (3, 4, 2),
        (4,),
        lambda x, p: torch.view_as_real((torch.view_as_complex(p) @ spectrum(x).T).T),
        "linear",
    ),
    "complex, for each frequency": Case(
        "Bmm",
        (5, 4, 3, 2),
        (5, 4),
        lambda x, p: torch.view_as_real(
            (spectrum(x).transpose(0, 1) @ torch.view_as_complex(p)).transpose(0, 1)
        ),
        "linear",
    ),
    "experts": Case(
        "GroupedMm",
        (2, 8, 4),
        (6, 8),
        lambda x, p: experts(x, p, [4, 2]),
        "linear",
        dtype=torch.float32,
    ),
    "experts, of which one is idle, their weights turned": Case(
        "GroupedMm",
        (3, 4, 8),
        (6, 8),
        lambda x, p: experts(x, p.mT, [1, 0, 5]),
        "linear",
        dtype=torch.float32,
    ),
    "embedding": Case("Embedding", (9, 4), (7,), lambda x, p: F.embedding(x, p), "embedding", 9),
    "embedding, padded": Case(
        "Embedding", (9, 4), (7,), lambda x, p: F.embedding(x, p, padding_idx=2), "embedding", 9
    ),
    "bag": Case("EmbeddingBag", (9, 4), (7,), F.embedding_bag, "embedding", 9),
    "bag, padded": Case(
        "EmbeddingBag",
        (9, 4),
        (7,),
        lambda x, p: F.embedding_bag(x, p, mode="sum", padding_idx=2),
        "embedding",
        9,
    ),
    "bag, the largest": Case(
        "EmbeddingBag",
        (9, 4),
        (7,),
        lambda x, p: F.embedding_bag(x, p, mode="max"),
        "embedding",
        9,
    ),
    "index": Case("Index", (9, 4), (7,), lambda x, p: p[x], "embedding", 9),
    "index, time first": Case(
        "Index", (9, 4), (7,), lambda x, p: p[x.T].transpose(0, 1), "embedding", 9
    ),
    "index, from the end": Case("Index", (9,), (7,), lambda x, p: p[-1 - x], "embedding", 9),
    "index, of two": Case(
        "Index", (9, 9, 2, 3), (7,), lambda x, p: p[x, x.roll(1, 1)], "embedding", 9
    ),
    "index select": Case(
        "IndexSelect",
        (9, 4),
        (7,),
        lambda x, p: p.index_select(0, x.flatten()).view(*x.shape, 4),
        "embedding",
        9,
    ),
    "add": Case("Add", (3, 1), (2, 3, 4), lambda x, p: torch.add(x, p, alpha=2)),
    "addcmul, what is added": Case(
        "Addcmul", (3, 1), (2, 3, 4), lambda x, p: torch.addcmul(p, x, x, value=2)
    ),
    "addcmul, a factor": Case(
        "Addcmul", (3, 1), (2, 3, 4), lambda x, p: torch.addcmul(x, p, x, value=2)
    ),
    "addcmul, the other factor": Case(
        "Addcmul", (4,), (2, 3, 4), lambda x, p: torch.addcmul(x, x, p, value=-1)
    ),
    "sub": Case("Sub", (4,), (2, 3, 4), lambda x, p: torch.sub(x, p, alpha=2)),
    "mul": Case("Mul", (3, 1), (2, 3, 4), lambda x, p: p * x),
    "mul, a number": Case("Mul", (), (2, 3), lambda x, p: x * p),
    "div": Case("Div", (4,), (3, 4), lambda x, p: p / (x.square() + 1)),
    "div by": Case("Div", (4,), (3, 4), lambda x, p: x / (p + 3)),
    "expand": Case(
        "Expand", (1, 1, 4), (3, 4), lambda x, p: torch.cat([p.expand(len(x), -1, -1), x], 1)
    ),
    "repeat": Case(
        "Repeat",
        (2, 1, 4),
        (6, 4),
        lambda x, p: (
            x * p.repeat(len(x), 3, 1).unflatten(0, (-1, 2)).sum(1).repeat_interleave(2, 1)
        ),
    ),
    "repeat, heads": Case(
        "Repeat",
        (2, 5, 4),
        (2, 3, 4),
        lambda x, p: torch.bmm(x.flatten(0, 1), p.repeat(len(x), 1, 1).mT).unflatten(0, (-1, 2)),
    ),
    "repeat, before the samples": Case(
        "Repeat",
        (2, 3),
        (5, 2, 3),
        lambda x, p: x * p.repeat(5, len(x), 1).unflatten(1, (-1, 2)).transpose(0, 1),
    ),
    "prelu": Case("PreluKernel", (3,), (3, 4), F.prelu),
    "prelu, one": Case("PreluKernel", (1,), (3, 4), F.prelu),
    "layer norm, scale": Case(
        "NativeLayerNorm", (4,), (3, 4), lambda x, p: F.layer_norm(x, (4,), p)
    ),
    "layer norm, shift": Case(
        "NativeLayerNorm", (3, 4), (3, 4), lambda x, p: F.layer_norm(x, (3, 4), None, p)
    ),
    "group norm, scale": Case(
        "NativeGroupNorm", (6,), (6, 5), lambda x, p: F.group_norm(x, 3, p, p.detach())
    ),
    "batch norm of vectors": Case(
        "NativeBatchNorm",
        (3,),
        (3,),
        lambda x, p: F.batch_norm(x, torch.ones(3).to(x), torch.ones(3).to(x) * 2, p, p.detach()),
    ),
    "batch norm, scale": Case(
        "NativeBatchNorm",
        (3,),
        (3, 5, 5),
        lambda x, p: F.batch_norm(x, torch.ones(3).to(x), torch.ones(3).to(x) * 2, p, p.detach()),
    ),
    "batch norm, shift": Case(
        "NativeBatchNorm",
        (3,),
        (3, 5, 5),
        lambda x, p: F.batch_norm(x, torch.ones(3).to(x), torch.ones(3).to(x) * 2, None, p),
    ),
    "batch norm, channels last": Case(
        "NativeBatchNorm",
        (3,),
        (3, 5, 5),
        lambda x, p: F.batch_norm(
            x.contiguous(memory_format=torch.channels_last),
            *(torch.ones(3).to(x), torch.ones(3).to(x) * 2, p, p.detach()),
        ),
    ),
}


# Element by element, without a rule of their own: what they contribute, their backward says.
ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Where": lambda x, p: torch.where(x > 0, x, p),
    "Lerp": lambda x, p: x.lerp(x.flip(1), p.sigmoid()),
    "Pow": lambda x, p: x.abs().add(0.1).pow(p),
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Fmax": torch.fmax,
    "Addcdiv": lambda x, p: torch.addcdiv(x, x, p.exp(), value=0.3),
    "Logaddexp": torch.logaddexp,
    "Clamp": lambda x, p: x.clamp(max=p),
    "Atan2": torch.atan2,
    "Hypot": torch.hypot,
    "Xlogy": lambda x, p: torch.xlogy(x, p.exp()),
}
SHAPES = {"features": (4,), "tokens": (3, 1), "all": (3, 4), "one": ()}
WITHOUT_RULE = {
    f"{name.lower()}, {of}": Case(name, shape, (3, 4), meet)
    for name, meet in ELEMENTWISE.items()
    for of, shape in SHAPES.items()
}


class Meeting(nn.Module):
    """The parameter and the input meet; a nonlinear end makes every gradient a different one."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.p = nn.Parameter(torch.randn(case.shape))

    def forward(self, x: Tensor) -> Tensor:
        y = self.case.meet(x, self.p)
        return torch.tanh(y).flatten(1).cumsum(1)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", CASES | WITHOUT_RULE)
def test_closed_form_is_exact_and_used(name: str, power: int) -> None:
    case = (CASES | WITHOUT_RULE)[name]
    model = Meeting(case).to(case.dtype)
    size = (N, *case.inputs)
    x = torch.randint(case.tokens, size) if case.tokens else torch.randn(size, dtype=case.dtype)
    engine = PerSample(model, {"p": model.p}, SquaredNorm(), power=power)
    with borrowed(model):
        sums = engine(Batch.of(x))
        truth = sums_by_loop(
            model, Batch.of(x), {"p": model.p}, SquaredNorm(), power=power, output=first_tensor
        )
    near = 1e-9 if case.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(sums["p"], truth["p"], rtol=near, atol=near)
    assert engine.routes["p"].split(",")[0] == case.route
    assert case.rule in {type(node).__name__.partition("Backward")[0] for node in _nodes(model, x)}


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES.values()} == set(RULES)


def _nodes(model: nn.Module, x: Tensor) -> list[object]:
    found, stack = [], [model(x).grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.append(node)
            stack += [below for below, _ in node.next_functions]
    return found


def test_scale_and_shift_of_a_batch_norm_come_from_one_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Tanh(), nn.BatchNorm2d(3)).double()
    engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
    with borrowed(model):
        engine(Batch.of(torch.randn(N, 3, 5, 5).double()))
        batch = Batch.of(torch.randn(N, 3, 5, 5).double())
        with Calls("native_batch_norm_backward") as calls:
            sums = engine(batch)
        truth = sums_by_loop(model, batch, engine.parameters, SquaredNorm(), output=first_tensor)
    for name, expected in truth.items():
        torch.testing.assert_close(sums[name], expected, rtol=1e-9, atol=1e-9)
    assert calls.count == 3  # one for each, and what the second passes on


class Calls(TorchDispatchMode):
    """Counts calls of an operation."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.count = name, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func.overloadpacket.__name__ == self.name
        return func(*args, **(kwargs or {}))
