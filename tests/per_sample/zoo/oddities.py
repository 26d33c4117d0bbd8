"""Parameters in unusual places, and unusual operations."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .blocks import Net, weight
from .specimen import images, sequences, specimen, vectors


@specimen(vectors(6))
def zero_dimensional_parameters():
    def forward(net, x):
        h = net.gain * torch.tanh(net.hidden(x)) + net.shift
        return net.head(h.sign() * h.abs().pow(net.power.exp()))

    return Net(
        forward, hidden=nn.Linear(6, 5), gain=weight(), shift=weight(), power=weight(),
        head=nn.Linear(5, 3),
    )  # fmt: skip


@specimen(vectors(6))
def elementwise_and_in_a_product():
    def forward(net, x):
        return torch.tanh(x @ net.square + x * net.square.diagonal()) @ net.square.exp()[:, :3]

    return Net(forward, square=weight(6, 6))


@specimen(images(2, 8, 8))
def filter_in_the_frequencies():
    """rfft, a real gain per frequency, irfft, with a kernel that is transformed too."""

    def forward(net, x):
        spectrum = torch.fft.rfft2(x) * net.gain
        kernel = torch.fft.rfft2(net.kernel, s=(8, 8))
        h = torch.fft.irfft2(spectrum * kernel, s=(8, 8))
        return net.head(torch.relu(h).flatten(1))

    return Net(forward, gain=weight(2, 8, 5), kernel=weight(2, 3, 3), head=nn.Linear(128, 3))


@specimen(vectors(6))
def einsum_with_parameters():
    def forward(net, x):
        h = torch.einsum("ni,ijk->njk", x, net.core)
        return torch.einsum("njk,nl,jlm->nm", torch.tanh(h), x, net.tail)

    return Net(forward, core=weight(6, 4, 3), tail=weight(4, 6, 3))


@specimen(vectors(6))
def parameters_in_lists_and_dicts():
    def forward(net, x):
        for w, b in zip(net.weights, net.biases.values()):
            x = torch.tanh(torch.addmm(b, x, w))
        return x @ net.weights[0][:, :3]

    return Net(
        forward, weights=nn.ParameterList([weight(6, 6) for _ in range(3)]),
        biases=nn.ParameterDict({"a": weight(6), "b": weight(6), "c": weight(6)}),
    )  # fmt: skip


@specimen(vectors(6))
def written_into_a_buffer():
    """`index_put`, `scatter_add` and slices assigned in place, of parameters and of samples."""

    def forward(net, x):
        canvas = x.new_zeros(len(x), 10)
        canvas[:, ::2] = net.even
        canvas[:, [1, 3]] = torch.tanh(net.small(x))
        canvas = canvas.scatter_add(1, torch.tensor([[0, 0, 9]]).expand(len(x), -1), x[:, :3])
        table = net.table.index_put((torch.tensor([0, 2]),), net.rows, accumulate=True)
        return torch.relu(canvas) @ table.index_add(0, torch.tensor([1, 1, 4]), net.more)

    return Net(
        forward, even=weight(5), small=nn.Linear(6, 2), table=weight(10, 3), rows=weight(2, 3),
        more=weight(3, 3),
    )  # fmt: skip


@specimen(vectors(6))
def gathered_by_the_data():
    """The sample chooses entries of a parameter, by sorting and by its largest values."""

    def forward(net, x):
        values, places = x.topk(3, 1)
        h = (values * net.rank) @ net.mix + net.owner[places].sum(1)
        ordered = x.sort(1).values * net.order
        return net.head(torch.cat([torch.tanh(h), ordered.cumsum(1)], 1))

    return Net(
        forward, rank=weight(3), mix=weight(3, 4), owner=weight(6, 4), order=weight(6),
        head=nn.Linear(10, 3),
    )  # fmt: skip


@specimen(vectors(5))
def distances_to_prototypes():
    def forward(net, x):
        euclid = torch.cdist(x, net.prototypes)  # [n, 4]
        radial = torch.exp(-(x[:, None] - net.centres).square().sum(2) / net.width.exp())
        return torch.cat([-euclid, radial], 1) @ net.head

    return Net(
        forward, prototypes=weight(4, 5), centres=weight(4, 5, scale=1.0), width=nn.Parameter(
            torch.full((4,), 2.0)
        ), head=weight(8, 3),
    )  # fmt: skip


@specimen(vectors(6), unused=("loose.*", "alone"))
def unused_and_frozen():
    def forward(net, x):
        return net.head(torch.relu(net.mixed(torch.relu(net.frozen(x)))))

    mixed = nn.Linear(8, 8)
    mixed.bias.requires_grad_(False)
    return Net(
        forward, frozen=nn.Linear(6, 8).requires_grad_(False), mixed=mixed, head=nn.Linear(8, 3),
        loose=nn.Linear(3, 4), alone=weight(2),
    )  # fmt: skip


@specimen(vectors(6))
def checkpointed_without_reentry():
    return _checkpointed(use_reentrant=False)


@specimen(vectors(6))
def checkpointed_with_reentry():
    return _checkpointed(use_reentrant=True)


def _checkpointed(*, use_reentrant):
    def forward(net, x):
        h = net.first(x)
        h = h + checkpoint(net.block, h, use_reentrant=use_reentrant)
        return net.head(checkpoint(net.block, h, use_reentrant=use_reentrant))

    block = nn.Sequential(nn.Linear(8, 12), nn.ReLU(inplace=True), nn.Linear(12, 8))
    return Net(forward, first=nn.Linear(6, 8), block=block, head=nn.Linear(8, 3))


@specimen(images(3, 6, 6))
def compiled_model():
    return torch.compile(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    )


@specimen(vectors(6))
def compiled_block():
    block = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)))
    return nn.Sequential(nn.Linear(6, 8), block, nn.Linear(8, 3))


class ScaledLinear(torch.autograd.Function):
    """y = tanh(g · x Wᵀ) with its own backward, for g too."""

    @staticmethod
    def forward(ctx, x, w, g):
        y = torch.tanh(g * (x @ w.t()))
        ctx.save_for_backward(x, w, g, y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, w, g, y = ctx.saved_tensors
        inner = gradient * (1 - y * y)
        return g * inner @ w, g * inner.t() @ x, (inner * (x @ w.t())).sum()


@specimen(vectors(6))
def own_autograd_function():
    def forward(net, x):
        return net.head(ScaledLinear.apply(torch.relu(net.first(x)), net.weight, net.gain))

    return Net(
        forward, first=nn.Linear(6, 7), weight=weight(5, 7), gain=weight(), head=nn.Linear(5, 3)
    )


class Doubled(torch.autograd.Function):
    """Two outputs of one node, a constant of Python kept in the context."""

    @staticmethod
    def forward(ctx, x, w, times):
        ctx.times = times
        ctx.save_for_backward(x, w)
        return x * w, times * x @ w[:, None]

    @staticmethod
    def backward(ctx, scaled, summed):
        x, w = ctx.saved_tensors
        dx = scaled * w + ctx.times * summed * w
        return dx, (scaled * x).sum(0) + ctx.times * (x.t() @ summed).squeeze(1), None


@specimen(vectors(6))
def own_autograd_function_with_two_outputs():
    def forward(net, x):
        scaled, summed = Doubled.apply(torch.tanh(net.first(x)), net.weight, 2)
        return net.head(scaled) * summed

    return Net(forward, first=nn.Linear(6, 7), weight=weight(7), head=nn.Linear(7, 3))


@specimen(vectors(6))
def own_autograd_function_with_an_output_that_nobody_uses():
    def forward(net, x):
        scaled, _ = Doubled.apply(torch.tanh(net.first(x)), net.weight, 3)
        return net.head(scaled)

    return Net(forward, first=nn.Linear(6, 7), weight=weight(7), head=nn.Linear(7, 3))


@specimen(vectors(6))
def hooks_for_gradients():
    """Hooks that look at gradients, as for saliency maps, put nodes of their own in the graph."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model[1].register_full_backward_hook(lambda module, inputs, outputs: None)
    model[2].register_full_backward_pre_hook(lambda module, outputs: None)
    return model


@specimen(vectors(4), vanishing=("energy.2.bias",))
def output_is_a_gradient():
    """The forward pass differentiates an energy: its graph holds backward nodes."""

    def forward(net, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = net.energy(x).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return -force

    energy = nn.Sequential(nn.Linear(4, 9), nn.Softplus(), nn.Linear(9, 1))
    return Net(forward, energy=energy)


@specimen(vectors(6))
def implicit_layer():
    """A fixed point by iteration, with one weight used ten times."""

    def forward(net, x):
        z, u = torch.zeros(len(x), 5, dtype=x.dtype), net.enter(x)
        for _ in range(10):
            z = torch.tanh(F.linear(z, 0.5 * net.inner) + u)
        return net.head(z)

    return Net(forward, enter=nn.Linear(6, 5), inner=weight(5, 5), head=nn.Linear(5, 3))


@specimen(images(2, 6, 6))
def spatial_transformer():
    def forward(net, x):
        theta = net.locate(x.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        h = F.grid_sample(x + net.canvas, grid, align_corners=False, padding_mode="border")
        return net.head(torch.tanh(h).flatten(1))

    return Net(forward, locate=nn.Linear(72, 6), canvas=weight(2, 6, 6), head=nn.Linear(72, 3))


@specimen(images(2, 4, 4))
def parameter_as_an_image():
    """A parameter enters as an input does: concatenated, convolved, sampled with the batch."""

    def forward(net, x):
        h = torch.cat([x, net.image.expand(len(x), -1, -1, -1)], 1)
        h = net.conv(h) + F.interpolate(net.small, size=(3, 3), mode="nearest")
        return net.head(torch.relu(h).flatten(1))

    return Net(
        forward, image=weight(1, 2, 4, 4), conv=nn.Conv2d(4, 3, 2), small=weight(1, 3, 2, 2),
        head=nn.Linear(27, 3),
    )  # fmt: skip


@specimen(vectors(6))
def softened_thresholds_and_choices():
    """`where`, `clamp`, `maximum`, `logsumexp` and a soft decision tree."""

    def forward(net, x):
        h = torch.where(x > net.threshold, net.above * x, net.below)
        h = torch.maximum(h, net.floor).clamp(max=3)
        left = torch.sigmoid(h @ net.split)  # [n, 2]
        leaves = torch.stack([left[:, :1], 1 - left[:, :1]], 1) * net.leaves
        return torch.logsumexp(leaves, 1) * left[:, 1:]

    return Net(
        forward, threshold=weight(6).requires_grad_(False), above=weight(6), below=weight(6),
        floor=weight(6), split=weight(6, 2), leaves=weight(2, 3),
    )  # fmt: skip


@specimen(sequences(5, 4))
def state_space_by_fft():
    """A long convolution whose kernel is made of decays: computed by FFT over time."""

    def forward(net, x):
        t = torch.arange(5, dtype=x.dtype)
        kernel = (net.gain[:, None] * torch.exp(-net.decay.exp()[:, None] * t)).sum(0)
        spectrum = torch.fft.rfft(kernel, n=10) * torch.fft.rfft(net.enter(x).mT, n=10)
        h = torch.fft.irfft(spectrum, n=10)[..., :5].mT
        return net.head(F.silu(h)).mean(1)

    return Net(
        forward, gain=weight(3), decay=weight(3), enter=nn.Linear(4, 6), head=nn.Linear(6, 3)
    )


@specimen(vectors(6))
def a_part_under_vmap():
    """One part runs under `torch.vmap`, sample by sample."""

    def forward(net, x):
        def one(row):
            return torch.tanh(net.weight @ row + net.bias)

        return net.head(torch.vmap(one)(x))

    return Net(forward, weight=weight(5, 6), bias=weight(5), head=nn.Linear(5, 3))


@specimen(vectors(6))
def solved_and_decomposed():
    """A linear system with a positive matrix made from a parameter, and a matrix exponential."""

    def forward(net, x):
        positive = net.root @ net.root.t() + torch.eye(6, dtype=x.dtype)
        h = torch.linalg.solve(positive, x.t()).t()
        return torch.tanh(h) @ torch.matrix_exp(net.log)[:, :3]

    return Net(forward, root=weight(6, 6), log=weight(6, 6))


@specimen(vectors(6))
def polynomial_and_products():
    """Products of two layers' outputs, powers, and a gradient that is stopped on one path."""

    def forward(net, x):
        a, b = net.a(x), net.b(x)
        h = a * b + net.cube * a.pow(3) - b.detach() * a.sin()
        return net.head(h / (1 + h.square().sum(1, keepdim=True)).sqrt())

    return Net(forward, a=nn.Linear(6, 5), b=nn.Linear(6, 5), cube=weight(5), head=nn.Linear(5, 3))


@specimen(vectors(6), output=lambda returned: torch.cat([returned["mean"], returned["scale"]], 1))
def several_outputs_in_a_dict():
    def forward(net, x):
        h = torch.relu(net.trunk(x))
        return {"names": ["a"], "mean": net.mean(h), "scale": F.softplus(net.scale(h)), "extra": h}

    return Net(forward, trunk=nn.Linear(6, 8), mean=nn.Linear(8, 2), scale=nn.Linear(8, 2))


@specimen(vectors(6))
def shifted_between_two_inputs():
    """Of token mixers such as RWKV: what was and what is, mixed by one factor for each channel."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.mix = weight(6), weight(6)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(torch.addcmul(self.base, x.roll(1, -1), self.mix, value=0.5).tanh())

    return Mixed()
