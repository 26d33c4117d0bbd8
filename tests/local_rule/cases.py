"""Models for the local rule, and which module's output each layer's function ends with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """`ends`: layer → the module whose output is y_l; layers that are absent have no rule."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ends: dict[str, str]
    batch_dim: int = 0


class Wrapped(nn.Module):
    """A function as a module, so that it can be named as an end."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def two_layers(sigma: nn.Module, inputs: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 7), sigma, nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 3))


def convolved(first: nn.Module, sigma: nn.Module, channels: int, head_inputs: int) -> nn.Module:
    flat = isinstance(first, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d))
    norm = (
        nn.BatchNorm1d
        if flat
        else nn.BatchNorm3d
        if isinstance(first, nn.Conv3d)
        else nn.BatchNorm2d
    )
    batch_norm = norm(channels)
    with torch.no_grad():  # also negative factors, as in trained networks
        batch_norm.weight.normal_()
        batch_norm.bias.normal_()
        batch_norm.running_mean.normal_()
        batch_norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(first, batch_norm, sigma, nn.Flatten(), nn.Linear(head_inputs, 3))


class Residual(nn.Module):
    """What follows the second layer is a sum, so that it stands alone."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu, self.second = nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3, padding=1)
        self.last_norm, self.head = nn.BatchNorm2d(2), nn.Linear(2, 3)
        with torch.no_grad():
            self.last_norm.weight.normal_()

    def forward(self, x):
        y = self.last_norm(self.second(self.relu(self.norm(self.first(x)))))
        y += x
        return self.head(y.relu_().mean((2, 3)))


class ReadTwice(nn.Module):
    """Swish by hand: two functions read the layer's output, which therefore stands alone."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        z = self.fc(x)
        return self.head(z * torch.sigmoid(z))


class Gated(nn.Module):
    """Both branches run before the non-linearity of the first."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.act = nn.Linear(5, 6), nn.Linear(5, 6), nn.SiLU()
        self.down, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        gate, up = self.gate(x), self.up(x)
        return self.head(self.down(self.act(gate) * up).mean(1))


class Twice(nn.Module):
    """One layer used twice in a forward pass, with a sign that can cancel."""

    def __init__(self, sigma):
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(5, 5), sigma, nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.act(self.fc(-self.act(self.fc(x)))))


class Tokens(nn.Module):
    """Linear layers on flattened tokens; `order` says which of sample and position is outer."""

    def __init__(self, order):
        super().__init__()
        self.order, self.embed = order, nn.Linear(3, 6)
        self.act, self.flat, self.head = nn.GELU(), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        tokens = self.act(self.embed(x))
        if self.order == "last":
            tokens = tokens.transpose(0, 1)
        rows = self.flat(tokens.reshape(-1, 6)).unflatten(0, tokens.shape[:2])
        return self.head(rows.mean(0 if self.order == "last" else 1))


class SequenceFirst(nn.Module):
    """[T, n, d] all the way."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.act(self.fc(x)).mean(0))


class Table(nn.Module):
    """A layer that reads a table of positions: the same rows for every sample."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(4, 2))
        self.bias, self.act, self.head = nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x):
        return self.head((x + self.act(self.bias(self.table))).mean(1))


class OverwritesInput(nn.Module):
    """The layer's input is changed in place while nothing has read its output yet."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        x = x * 2
        z = self.fc(x)
        x.mul_(3)
        return self.head(self.act(z) + x[:, :4])


class InputsFirst(nn.Module):
    """A linear layer with a transposed weight on flattened tokens, as in GPT-2."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Reshaped(nn.Module):
    """Views and a dropout (in eval mode) stand between a layer and its non-linearity."""

    def __init__(self):
        super().__init__()
        self.fc, self.drop, self.relu = (
            nn.Linear(5, 6),
            nn.Dropout(0.5, inplace=True),
            nn.ReLU(True),
        )
        self.back, self.head = Wrapped(lambda x: x.flatten(1)), nn.Linear(6, 2)

    def forward(self, x):
        y = self.relu(self.drop(self.fc(x)).view(-1, 2, 3).transpose(1, 2))
        return self.head(self.back(y.transpose(1, 2)))


LINEAR = {"0": "1", "2": "3"}
CONVOLUTION = {"0": "2"}
SIGMAS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: getattr(nn, name)
        for name in (
            "ReLU",
            "ReLU6",
            "LeakyReLU",
            "PReLU",
            "RReLU",
            "ELU",
            "CELU",
            "SELU",
            "GELU",
            "SiLU",
            "Mish",
            "Hardswish",
            "Hardsigmoid",
            "Hardtanh",
            "Sigmoid",
            "Tanh",
            "Softplus",
            "LogSigmoid",
            "Softsign",
            "Tanhshrink",
            "Softshrink",
            "Hardshrink",
        )
    },
    "tanh-GELU": lambda: nn.GELU("tanh"),
    "threshold": lambda: nn.Threshold(0.1, 0.7),
    "in-place ReLU": lambda: nn.ReLU(inplace=True),
    "in-place SiLU": lambda: nn.SiLU(inplace=True),
    "in-place ELU": lambda: nn.ELU(inplace=True),
    "F.relu": lambda: Wrapped(F.relu),
    "torch.relu": lambda: Wrapped(torch.relu),
    "Tensor.relu_": lambda: Wrapped(Tensor.relu_),
    "Tensor.clamp": lambda: Wrapped(lambda x: x.clamp(min=0, max=0.5)),
    "clamp_min": lambda: Wrapped(lambda x: torch.clamp_min(x, -0.1)),
    "F.leaky_relu": lambda: Wrapped(lambda x: F.leaky_relu(x, 0.3)),
}

CASES: dict[str, Case] = {
    **{
        f"linear {name}": Case(lambda sigma=sigma: two_layers(sigma()), (6, 5), LINEAR)
        for name, sigma in SIGMAS.items()
    },
    "tokens": Case(
        lambda: nn.Sequential(
            nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 4), nn.Flatten(), nn.Linear(12, 2)
        ),
        (4, 3, 5),
        {"0": "1", "2": "2"},
    ),
    "four dimensions": Case(
        lambda: nn.Sequential(
            nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), nn.Flatten(), nn.Linear(24, 2)
        ),
        (4, 2, 3, 5),
        {"0": "1", "2": "2"},
    ),
    "as many tokens as samples": Case(
        lambda: nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Flatten(), nn.Linear(21, 2)),
        (3, 3, 5),
        {"0": "1"},
    ),
    "linear without bias": Case(
        lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        (6, 5),
        {"0": "1"},
    ),
    "linear, batch-norm": Case(
        lambda: convolved(nn.Linear(5, 6), nn.ReLU(), 6, 6), (7, 5), {"0": "2"}
    ),
    "residual": Case(Residual, (5, 2, 6, 6), {"first": "relu", "second": "last_norm"}),
    "read twice": Case(ReadTwice, (6, 5), {"fc": "fc"}),
    "gated": Case(Gated, (4, 3, 5), {"gate": "act", "up": "up", "down": "down"}),
    "used twice": Case(lambda: Twice(nn.Tanh()), (6, 5), {"fc": "act"}),
    "used twice, relu": Case(lambda: Twice(nn.ReLU()), (6, 5), {"fc": "act"}),
    "flattened tokens": Case(lambda: Tokens("first"), (4, 3, 3), {"embed": "act", "flat": "flat"}),
    "flattened tokens, sequence first": Case(
        lambda: Tokens("last"), (4, 3, 3), {"embed": "act", "flat": "flat"}
    ),
    "inputs first": Case(
        lambda: nn.Sequential(
            InputsFirst(3, 6),
            nn.GELU(),
            InputsFirst(6, 4),
            nn.Flatten(),
            nn.Linear(12, 2),
        ),
        (4, 3, 3),
        {"0": "1", "2": "2"},
    ),
    "sequence first": Case(SequenceFirst, (5, 4, 3), {"fc": "act"}, batch_dim=1),
    "sequence first, T = n": Case(SequenceFirst, (4, 4, 3), {"fc": "act"}, batch_dim=1),
    "a table": Case(Table, (3, 4, 5), {"bias": "act"}),
    "input overwritten": Case(OverwritesInput, (6, 5), {"fc": "act"}),
    "views between": Case(Reshaped, (6, 5), {"fc": "back"}),
    "relu at the end": Case(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU()), (6, 5), {"0": "1"}),
    "conv1d": Case(
        lambda: convolved(nn.Conv1d(2, 4, 3, stride=2), nn.GELU(), 4, 12), (5, 2, 8), CONVOLUTION
    ),
    "conv2d": Case(
        lambda: convolved(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), 4, 144),
        (5, 2, 6, 6),
        CONVOLUTION,
    ),
    "conv2d, groups, dilation, stride": Case(
        lambda: convolved(
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2), nn.SiLU(), 6, 48
        ),
        (5, 4, 6, 6),
        CONVOLUTION,
    ),
    "conv2d, depthwise": Case(
        lambda: convolved(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU6(), 8, 128),
        (5, 4, 6, 6),
        CONVOLUTION,
    ),
    "conv2d, same": Case(
        lambda: convolved(
            nn.Conv2d(2, 4, (4, 3), padding="same", dilation=(1, 2)), nn.Tanh(), 4, 144
        ),
        (5, 2, 6, 6),
        CONVOLUTION,
    ),
    "conv2d, valid": Case(
        lambda: convolved(nn.Conv2d(2, 4, 3, padding="valid"), nn.Tanh(), 4, 64),
        (5, 2, 6, 6),
        CONVOLUTION,
    ),
    "conv2d, reflect": Case(
        lambda: convolved(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.ELU(), 4, 144),
        (5, 2, 6, 6),
        CONVOLUTION,
    ),
    "conv2d, circular and same": Case(
        lambda: convolved(
            nn.Conv2d(2, 4, 4, padding="same", padding_mode="circular"), nn.ELU(), 4, 144
        ),
        (5, 2, 6, 6),
        CONVOLUTION,
    ),
    "conv2d, one position": Case(
        lambda: convolved(nn.Conv2d(2, 4, 6), nn.Tanh(), 4, 4), (5, 2, 6, 6), CONVOLUTION
    ),
    "conv2d, 1x1": Case(
        lambda: convolved(nn.Conv2d(2, 4, 1), nn.LeakyReLU(), 4, 64), (5, 2, 4, 4), CONVOLUTION
    ),
    "conv3d": Case(
        lambda: convolved(nn.Conv3d(2, 3, 2), nn.PReLU(3), 3, 81), (4, 2, 4, 4, 4), CONVOLUTION
    ),
    "conv_transpose1d": Case(
        lambda: convolved(nn.ConvTranspose1d(2, 4, 3, stride=2), nn.Tanh(), 4, 36),
        (5, 2, 4),
        CONVOLUTION,
    ),
    "conv_transpose2d": Case(
        lambda: convolved(
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.ReLU(),
            6,
            384,
        ),
        (5, 4, 4, 4),
        CONVOLUTION,
    ),
    "frames": Case(
        lambda: nn.Sequential(
            Wrapped(lambda x: x.flatten(0, 1)),
            nn.Conv2d(2, 3, 3),
            nn.Tanh(),
            Wrapped(lambda x: x.unflatten(0, (-1, 3)).mean((1, 3, 4))),
            nn.Linear(3, 2),
        ),
        (4, 3, 2, 5, 5),
        {"1": "2"},
    ),
}
