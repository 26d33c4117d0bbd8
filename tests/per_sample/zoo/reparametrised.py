"""Weights that are computed: normalised, factored, masked, joined, quantised, generated."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from .blocks import Net, weight
from .specimen import images, sequences, specimen, vectors


@specimen(images(3, 6, 6))
def weight_norm_by_hook():
    norm = nn.utils.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 5, 3)), nn.ReLU(), nn.Flatten(),
        norm(nn.Linear(80, 8), dim=None), nn.Tanh(), norm(nn.Linear(8, 3)),
    )  # fmt: skip


@specimen(images(3, 9))
def weight_norm_by_parametrization():
    norm = parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv1d(3, 5, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(35, 8)), nn.Tanh(),
        norm(nn.Linear(8, 3), dim=1),
    )  # fmt: skip


@specimen(images(3, 6, 6))
def spectral_norm_by_hook():
    norm = nn.utils.spectral_norm
    return nn.Sequential(norm(nn.Conv2d(3, 5, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(80, 3)))


@specimen(images(3, 6, 6))
def spectral_norm_by_parametrization():
    norm = parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Conv2d(3, 5, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(80, 3)))


@specimen(vectors(6))
def orthogonal_weights():
    return nn.Sequential(
        parametrizations.orthogonal(nn.Linear(6, 6)), nn.Tanh(),
        parametrizations.orthogonal(nn.Linear(6, 4), orthogonal_map="cayley"), nn.ReLU(),
        nn.Linear(4, 3),
    )  # fmt: skip


@specimen(sequences(4, 5))
def recurrent_with_normed_weights():
    rnn = parametrizations.weight_norm(nn.GRU(5, 4, batch_first=True), "weight_hh_l0")

    def forward(net, x):
        return net.head(net.rnn(x)[0].sum(1))

    return Net(forward, rnn=rnn, head=nn.Linear(4, 3))


class Symmetric(nn.Module):
    def forward(self, raw):
        return raw.triu() + raw.triu(1).transpose(-1, -2)


class Positive(nn.Module):
    def forward(self, raw):
        return F.softplus(raw)


@specimen(vectors(6))
def stacked_parametrizations():
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    parametrize.register_parametrization(layer, "weight", Positive())
    parametrize.register_parametrization(layer, "bias", Positive())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 3))


@specimen(images(3, 6, 6))
def pruned():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.Tanh(), nn.Linear(8, 3)
    )
    prune.random_unstructured(model[0], "weight", 0.4)
    prune.random_structured(model[3], "weight", 0.5, dim=1)
    prune.l1_unstructured(model[3], "bias", 2)
    return model


@specimen(sequences(4, 6))
def low_rank_adapter():
    """W + BA, W frozen, on tokens; and the same adapter applied as two products."""

    def forward(net, x):
        h = F.linear(x, net.frozen.weight + 2 * net.b @ net.a, net.frozen.bias)
        return net.head(torch.relu(h) + F.linear(F.linear(x, net.a), net.b)).mean(1)

    frozen = nn.Linear(6, 6).requires_grad_(False)
    return Net(forward, frozen=frozen, a=weight(2, 6), b=weight(6, 2), head=nn.Linear(6, 3))


@specimen(vectors(6))
def sliced_weight():
    def forward(net, x):
        h = torch.tanh(F.linear(x, net.weight[:5, :6], net.bias[:5]))
        return F.linear(h, net.weight[5:, 1:6], net.bias[5:])

    return Net(forward, weight=weight(8, 7), bias=weight(8))


@specimen(vectors(6))
def joined_weights():
    def forward(net, x):
        joined = torch.cat([net.top, net.bottom]), torch.cat([net.bias, net.bias.flip(0)])
        return net.head(torch.relu(F.linear(x, *joined)))

    return Net(forward, top=weight(3, 6), bottom=weight(5, 6), bias=weight(4), head=nn.Linear(8, 3))


@specimen(sequences(4, 6))
def query_key_value_stacked():
    """Three parameters stacked, used as one product, and one of them used again by itself."""

    def forward(net, x):
        q, k, v = torch.einsum("ntd,sed->snte", x, torch.stack([net.q, net.k, net.v]))
        h = (q @ k.mT).softmax(2) @ v + x @ net.q.t()
        return net.head(h.mean(1))

    return Net(forward, q=weight(5, 6), k=weight(5, 6), v=weight(5, 6), head=nn.Linear(5, 3))


@specimen(images(4, 6, 6))
def standardised_convolution():
    def forward(net, x):
        w = net.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        h = F.conv2d(x, w * net.gain, net.conv.bias, groups=2)
        return net.head(torch.relu(h).mean((2, 3)))

    return Net(
        forward, conv=nn.Conv2d(4, 6, 3, groups=2), gain=weight(6, 1, 1, 1), head=nn.Linear(6, 3)
    )


@specimen(vectors(6))
def circulant_and_kronecker():
    def forward(net, x):
        steps = torch.arange(6)
        circulant = net.ring[(steps[:, None] - steps[None]) % 6]
        return F.linear(torch.tanh(F.linear(x, circulant)), torch.kron(net.left, net.right))

    return Net(forward, ring=weight(6), left=weight(2, 3), right=weight(2, 2))


@specimen(vectors(6))
def weight_generated_from_a_latent():
    """A small network makes the weight of another one, the same weight for each sample."""

    def forward(net, x):
        w = net.maker(net.latent).view(5, 6)
        return net.head(torch.relu(F.linear(x, w)))

    maker = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 30))
    return Net(forward, latent=weight(3), maker=maker, head=nn.Linear(5, 3))


class Rounded(torch.autograd.Function):
    """Rounds forward, passes the gradient straight through where the input is inside [−1, 1]."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


@specimen(images(3, 6, 6))
def quantised_weights_and_activations():
    def forward(net, x):
        h = F.conv2d(x, Rounded.apply(net.filters), net.bias)
        h = Rounded.apply(torch.tanh(h)) * net.step
        return net.head(h.mean((2, 3)))

    return Net(
        forward, filters=weight(5, 3, 3, 3), bias=weight(5), step=weight(5, 1, 1),
        head=nn.Linear(5, 3),
    )  # fmt: skip


@specimen(images(3, 6, 6))
def mixture_of_kernels():
    """Each sample mixes four kernels; the batch becomes the groups of one convolution."""

    def forward(net, x):
        n = len(x)
        shares = net.route(x.mean((2, 3))).softmax(1)  # [n, 4]
        kernels = torch.einsum("nk,koihw->noihw", shares, net.kernels).flatten(0, 1)
        h = F.conv2d(x.reshape(1, n * 3, 6, 6), kernels, groups=n).view(n, 5, 4, 4)
        return net.head(torch.relu(h).mean((2, 3)))

    return Net(forward, route=nn.Linear(3, 4), kernels=weight(4, 5, 3, 3, 3), head=nn.Linear(5, 3))


@specimen(lambda n: [torch.randn(n, 6), torch.randn(n, 4)])
def hypernetwork_per_sample():
    """Each sample gets its own weights, made from its context, used by bmm."""

    def forward(net, x, context):
        made = net.maker(context)
        first, second = made[:, :30].view(-1, 5, 6), made[:, 30:].view(-1, 3, 5)
        h = torch.relu(torch.bmm(first, x.unsqueeze(2)) + net.bias)
        return torch.bmm(second, h).squeeze(2)

    maker = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 45))
    return Net(forward, maker=maker, bias=weight(5, 1))


@specimen(vectors(6))
def called_functionally():
    """A module called with weights that are not its own."""
    template = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
    names = [name for name, _ in template.named_parameters()]

    def forward(net, x):
        given = {name: p * 1.5 for name, p in zip(names, net.own)}
        return torch.func.functional_call(net.template, given, (x,))

    own = nn.ParameterList([weight(*p.shape) for p in template.parameters()])
    return Net(forward, template=template, own=own)
