"""Graphs that look the same and are not: operations with other arguments, coincidences, sizes.

The names and the wiring of the operations do not change in these pairs of batches, nor do the
shapes where parameters meet the data; only who owns which row does, or what the rows hold.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import retain
from retain.samples.batches import Batch

from .zoo import REGISTRY, Watched, batch_of, one_off
from .zoo.blocks import Net, weight
from .zoo.specimen import sequences, vectors


def _with(x: Tensor, **more: Any) -> Batch:
    return replace(Batch.of({"x": x.double(), **more}), labels=torch.arange(len(x)))


def _tower(forward: Any, inputs: Any, d: int = 6) -> Watched:
    return one_off(Net(forward, hidden=nn.Linear(d, 8), head=nn.Linear(8, 3)), inputs)


def test_pieces_of_other_lengths() -> None:
    """Sequences laid end to end, split again: first all of one length, then not."""

    def forward(net: Any, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        sizes = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
        h = torch.tanh(net.hidden(torch.cat([row[:size] for row, size in zip(x, sizes)])))
        return net.head(torch.stack([piece.mean(0) for piece in h.split(sizes)]))

    watched = _tower(forward, sequences(4, 6))
    x = torch.randn(4, 4, 6)
    for lengths in ([3, 3, 3, 3], [4, 2, 3, 3], [1, 4, 4, 3], [3, 3, 3, 3], [4, 4, 2, 2]):
        assert not watched.complaint(_with(x, lengths=torch.tensor(lengths))), lengths


@pytest.mark.parametrize("shifts", [(0, 1, 3, 0), (1, 0, 2)])
def test_samples_rolled_by_other_shifts(shifts: tuple[int, ...]) -> None:
    def forward(net: Any, x: Tensor, shift: int = 0) -> Tensor:
        return net.head(torch.tanh(net.hidden(x.roll(shift, 0)))).roll(-shift, 0)

    watched = _tower(forward, vectors(6))
    for shift in shifts:
        assert not watched.complaint(_with(torch.randn(5, 6), shift=shift)), shift


@pytest.mark.parametrize("cuts", [(0, 2, 3), (2, 0, 1)])
def test_samples_cut_at_other_places(cuts: tuple[int, ...]) -> None:
    def forward(net: Any, x: Tensor, cut: int = 0) -> Tensor:
        h = torch.tanh(net.hidden(torch.cat([x[cut:], x[:cut]])))
        return net.head(torch.cat([h[len(x) - cut :], h[: len(x) - cut]]))

    watched = _tower(forward, vectors(6))
    for cut in cuts:
        assert not watched.complaint(_with(torch.randn(5, 6), cut=cut)), cut


@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_flipped_along_another_dimension(order: tuple[int, int]) -> None:
    def forward(net: Any, x: Tensor, dim: int = 1) -> Tensor:
        h = torch.tanh(net.hidden(x.flip(dim).flatten(0, 1))).view(*x.shape[:2], -1)
        return net.head(h.flip(dim)[:, 0])

    watched = _tower(forward, sequences(4, 6))
    for dim in order:
        assert not watched.complaint(_with(torch.randn(4, 4, 6), dim=dim)), dim


@pytest.mark.parametrize("order", [(False, True), (True, False)])
@pytest.mark.parametrize(("n", "t"), [(4, 4), (3, 5), (2, 3)])
def test_rows_in_another_order(n: int, t: int, order: tuple[bool, bool]) -> None:
    """[n·T, d] or [T·n, d], told apart only by the sizes of a view and the dimension of a mean."""

    def forward(net: Any, x: Tensor, time_first: bool = False) -> Tensor:
        x = x.transpose(0, 1) if time_first else x
        h = torch.tanh(net.hidden(x.flatten(0, 1)))
        return net.head(h.view(*x.shape[:2], -1).mean(0 if time_first else 1))

    watched = _tower(forward, sequences(t, 6))
    for time_first in order:
        assert not watched.complaint(_with(torch.randn(n, t, 6), time_first=time_first))


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_permuted_otherwise(order: tuple[bool, bool]) -> None:
    """T = N: nothing differs but the dimensions that a permutation names."""

    def forward(net: Any, x: Tensor, swap: bool = False) -> Tensor:
        dims = (1, 0, 2) if swap else (0, 1, 2)
        x = x.permute(dims)
        h = torch.tanh(net.hidden(x.flatten(0, 1))).view(*x.shape[:2], 8)
        return net.head(h.permute(dims)[:, 1])

    watched = _tower(forward, sequences(4, 6))
    for swap in order:
        assert not watched.complaint(_with(torch.randn(4, 4, 6), swap=swap))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("both", [False, True])
def test_the_same_operations_with_other_parameters(both: bool, order: tuple[int, int]) -> None:
    """A layer that the batch chooses, or two that it puts in another order."""

    def forward(net: Any, x: Tensor, first: int = 0) -> Tensor:
        layers = [net.one, net.other]
        chosen = [layers[first], layers[1 - first]] if both else [layers[first]]
        for layer in chosen:
            x = torch.tanh(layer(x))
        return net.head(x)

    net = Net(forward, one=nn.Linear(6, 6), other=nn.Linear(6, 6), head=nn.Linear(6, 3))
    watched = one_off(net, vectors(6))
    for first in (*order, order[0]):
        assert not watched.complaint(_with(torch.randn(5, 6), first=first)), first


@pytest.mark.parametrize("starts", [(4, 2, 0), (2, 4, 3), (0, 4)])
def test_slices_of_a_parameter_that_overlap_later(starts: tuple[int, ...]) -> None:
    """Rows that are used twice are summed before the power; rows used once need not be."""

    def forward(net: Any, x: Tensor, start: int = 4) -> Tensor:
        first = F.linear(x, net.weight[:4])
        second = F.linear(x.flip(1), net.weight[start : start + 4])
        return net.head(torch.tanh(torch.cat([first, second], 1)))

    net = Net(forward, weight=weight(8, 6), head=nn.Linear(8, 3))
    watched = one_off(net, vectors(6))
    for start in starts:
        assert not watched.complaint(_with(torch.randn(5, 6), start=start)), start


def test_a_position_for_every_sample_by_coincidence() -> None:
    """First each sample has a single token, all at different places; then they have them all."""

    def forward(net: Any, x: Tensor, keep: Tensor | None = None) -> Tensor:
        h = torch.tanh(x + net.position(torch.arange(4)))
        h = h if keep is None else h * keep.unsqueeze(2)
        return net.head(h.sum(1))

    net = Net(forward, position=nn.Embedding(4, 6), head=nn.Linear(6, 3))
    watched = one_off(net, sequences(4, 6))
    diagonal = torch.eye(4).double()
    for keep in (diagonal, diagonal.flip(0), torch.ones(4, 4).double(), diagonal[[1, 0, 3, 2]]):
        assert not watched.complaint(_with(torch.randn(4, 4, 6), keep=keep))


def test_a_token_for_every_sample_by_coincidence() -> None:
    """First token k belongs to sample k, as if rows of the table were samples."""
    watched = Watched(REGISTRY["embedding_sequence_first"])
    own = torch.arange(5)[:, None].expand(5, 6)
    for x in (own, own.flip(0), torch.randint(11, (5, 6)), own.remainder(2)):
        assert not watched.complaint(batch_of(x))


@pytest.mark.parametrize("ratio", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("where", [0, 4])
def test_one_sample_outweighs_the_others(ratio: float, where: int) -> None:
    """A gradient that is nearly, not quite, one sample's is still a sum over samples."""

    def forward(net: Any, x: Tensor, size: Tensor | None = None) -> Tensor:
        h = torch.tanh(net.hidden(x) + net.position(torch.arange(4)) + net.table[torch.arange(4)])
        out = net.head(h.sum(1))
        return out if size is None else out * size[:, None]

    net = Net(
        forward, hidden=nn.Linear(6, 8), position=nn.Embedding(4, 8), table=weight(4, 8),
        head=nn.Linear(8, 3),
    )  # fmt: skip
    watched = one_off(net, sequences(4, 6))
    # so that sizes matter
    watched.output = watched.per_sample._forward.output = watched.specimen.output
    size = torch.full((5,), ratio**0.5).double()
    size[where] = 1
    assert not watched.complaint(_with(torch.randn(5, 4, 6), size=size))


def test_gradients_that_cancel() -> None:
    """x and −x: the sum over samples is exactly zero, the sum of absolute values is not."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = x + net.position(torch.arange(4)) - net.twin.weight[torch.arange(4)]
        return net.head(h.flatten(1))

    position = nn.Embedding(4, 6)
    net = Net(
        forward, position=position, twin=nn.Embedding.from_pretrained(position.weight.detach()),
        head=nn.Linear(24, 3, bias=False),
    )  # fmt: skip
    watched = one_off(net, sequences(4, 6))
    watched.output = watched.per_sample._forward.output = watched.specimen.output
    with torch.no_grad():
        net.twin.weight.copy_(net.position.weight)  # so that both vanish from the sum
    x = torch.randn(2, 4, 6)
    for each in (torch.cat([x, -x]), torch.cat([x[:1], -x[:1]]), x):
        assert not watched.complaint(batch_of(each))


@pytest.mark.parametrize("n", [2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize(
    "name",
    [
        "batch_in_columns",
        "residual_mlp",
        "one_layer_in_two_layouts",
        "elementwise_and_in_a_product",
        "grid_of_tokens",
        "linear_attention_by_einsum",
        "scale_and_shift_of_every_shape",
        "patches_by_unfold",
        "lookups_by_indexing",
        "joined_weights",
    ],
)
def test_as_many_samples_as_another_dimension(name: str, n: int) -> None:
    watched = Watched(REGISTRY[name])
    for seed in range(2):
        assert not watched.complaint(watched.specimen.batch(n, seed=seed))


def test_hooks_on_gradients() -> None:
    """A hook that masks a parameter's gradient counts, as in a backward pass of one sample."""
    watched = Watched(REGISTRY["mlp_with_batch_norm"])
    watched.model[1].weight.register_hook(lambda g: g * (torch.arange(36) > 3))
    watched.model[7].register_full_backward_hook(lambda module, inputs, outputs: None)
    for n in (5, 3, 1):
        assert not watched.complaint(watched.specimen.batch(n))
    watched.engine(watched.specimen.batch(5))
    assert watched.per_sample.routes["1.weight"] == "linear"


@pytest.mark.parametrize("power", [1, 2])
def test_hooks_that_become_others(power: int) -> None:
    """A mask that changes counts as it is; a hook that no longer multiplies is noticed."""
    torch.manual_seed(0)
    model, x = nn.Linear(12, 24), torch.randn(8, 12)
    kind = {"fisher": "exact"} if power == 2 else {}
    memory = (retain.EWC if power == 2 else retain.MAS)(model, **kind)
    hook = {"is": lambda g: g}
    model.weight.register_hook(lambda g: hook["is"](g))
    plain = (retain.EWC if power == 2 else retain.MAS)(copy.deepcopy(model), **kind)
    truth = plain.observe(x, progress=False).observed["weight"]
    signs = torch.randn(24, 12)
    for _ in range(3):  # the mean over three batches of the same
        memory.observe(x, progress=False)
        hook["is"] = lambda g: g * signs
    expected = truth * (1 + 2 * signs.abs() ** power) / 3
    assert torch.allclose(memory.observed["weight"], expected, rtol=1e-4)
    hook["is"] = lambda g: g / (1 + g.norm())
    with pytest.warns(UserWarning, match="'weight'.*hook"):
        memory.observe(x, progress=False)


@pytest.mark.parametrize("writes", [lambda call: True, lambda call: call > 5])
def test_hooks_that_write_into_the_gradient(writes) -> None:
    """From the beginning, or all of a sudden: what the sum was before is not lost."""
    torch.manual_seed(0)
    model, x, mask = nn.Linear(12, 24), torch.randn(8, 12), (torch.rand(24, 12) > 0.5).float()
    calls = iter(range(1000))

    def masked(g):
        if not writes(next(calls)):
            return g * mask
        g.mul_(mask)
        return None

    truth = retain.MAS(copy.deepcopy(model)).observe(x, progress=False).observed["weight"] * mask
    model.weight.register_hook(masked)
    memory = retain.MAS(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is looped over, where it was sudden
        for _ in range(5):
            memory.observe(x, progress=False)
    assert torch.allclose(memory.observed["weight"], truth, rtol=1e-4)


def test_hooks_that_look_at_the_whole_gradient() -> None:
    """Clipped by its norm: what remains of an element depends on the others; no closed form."""
    watched = Watched(REGISTRY["mlp_with_batch_norm"])
    watched.model[1].weight.register_hook(lambda g: g / (1 + g.norm()))
    with pytest.warns(match="'1.weight'.*hook"):
        assert not watched.complaint(watched.specimen.batch(5))
    assert not watched.complaint(watched.specimen.batch(1))
