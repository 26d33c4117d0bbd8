"""What the engine learned from one batch holds for the next, or is learned again."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retain.borrowed import borrowed
from retain.per_sample import PerSample, sums_by_loop
from retain.per_sample.scores import SquaredNorm
from retain.per_sample.trust import Trust
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

from .zoo import REGISTRY, Specimen, Watched, batch_of, one_off
from .zoo.blocks import Net, weight
from .zoo.specimen import sequences, sequences_first, tokens, vectors

ALL = [
    pytest.param(s, id=f"{s.family}-{s.name}", marks=[pytest.mark.slow] if s.slow else [])
    for s in REGISTRY.values()
]
SMALL = [param for param in ALL if param.values[0].family not in ("vision", "huggingface", "wide")]


def _rows_shuffled(x: Tensor, seed: int) -> Tensor:
    """The same tokens, each in the hands of another sample."""
    order = torch.randperm(x.shape[0] * x.shape[1], generator=torch.Generator().manual_seed(seed))
    return x.flatten(0, 1)[order].view_as(x)


@pytest.mark.parametrize("specimen", ALL)
def test_other_sizes_and_other_data(specimen: Specimen) -> None:
    """Larger first, then the short last batch, a single sample, and as before with new data."""
    watched = Watched(specimen)
    usual = specimen.samples
    for seed, n in enumerate([usual, usual - 1, 1, usual], start=3):
        assert not watched.complaint(specimen.batch(n, seed=seed))


@pytest.mark.parametrize("specimen", SMALL)
def test_a_first_batch_of_one_sample(specimen: Specimen) -> None:
    watched = Watched(specimen)
    for seed, n in enumerate([1, specimen.samples], start=3):
        assert not watched.complaint(specimen.batch(n, seed=seed))


LONGER = {
    "encoder_batch_first": lambda t: sequences(t, 8),
    "encoder_sequence_first_inside": lambda t: sequences(t, 8),
    "encoder_sequence_first_directly": lambda t: sequences_first(t, 8),
    "flattened_tokens": lambda t: sequences(t, 6),
    "flattened_tokens_time_first": lambda t: sequences(t, 6),
    "set_prediction": lambda t: sequences(t, 4),
    "causal_attention_by_hand": lambda t: sequences(t, 6),
    "learned_queries": lambda t: sequences(t, 6),
    "lstm_sequence_first": lambda t: sequences_first(t, 4),
    "lstm_cell_loop": lambda t: sequences(t, 4),
    "gru_bidirectional_two_layers": lambda t: sequences(t, 4),
    "scan_over_time_with_a_shared_cell": lambda t: sequences(t, 4),
    "tied_language_model": lambda t: tokens(t, 11),
    "embedding_sequence_first": lambda t: tokens(t, 11),
    "embedding_bag_with_offsets": lambda t: tokens(t, 11),
    "ragged_tokens": lambda t: tokens(t, 9),
    "rms_norm": lambda t: sequences(t, 6),
}


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 6), (6, 4), (3, 8), (8, 3)],  # n·T stays the same
        [(5, 4), (4, 4), (4, 6), (6, 6)],  # T = N and not
        [(2, 4), (4, 2), (1, 8), (8, 2)],
        [(2, 3), (3, 2), (2, 5)],  # T ≡ 1 mod n
    ],
    ids=["same rows", "T equals N", "powers of two", "T is 1 mod n"],
)
@pytest.mark.parametrize("name", LONGER)
def test_other_lengths(name: str, shapes: list[tuple[int, int]]) -> None:
    watched = Watched(REGISTRY[name])
    for seed, (n, t) in enumerate(shapes):
        if "bag" in name and t % 2:
            continue  # two bags per sample
        resized = replace(REGISTRY[name], inputs=LONGER[name](t))
        assert not watched.complaint(resized.batch(n, seed=seed)), (n, t)


@pytest.mark.parametrize("name", ["hard_mixture_of_experts", "ragged_tokens"])
def test_same_counts_other_owners(name: str) -> None:
    """Each expert gets as many rows as before, from other samples: the shapes cannot tell."""
    watched = Watched(REGISTRY[name])
    (x,) = watched.specimen.batch(6).args
    for seed in range(5):
        assert not watched.complaint(batch_of(_rows_shuffled(x, seed)))


@pytest.mark.parametrize(
    "name", ["sample_chooses_its_branch", "message_passing", "batch_sorted_and_put_back"]
)
def test_same_samples_in_another_order(name: str) -> None:
    watched = Watched(REGISTRY[name])
    batch = watched.specimen.batch(7)
    for seed in range(4):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        shuffled = replace(batch, args=tuple(arg[order] for arg in batch.args))
        assert not watched.complaint(shuffled)


def test_mixtral_with_its_samples_in_another_order() -> None:
    watched = Watched(REGISTRY["mixtral_of_experts"])
    batch = watched.specimen.batch(4)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 0, 3, 2]):
        shuffled = {key: value[order] for key, value in batch.kwargs.items()}
        assert not watched.complaint(replace(batch, kwargs=shuffled))


def test_experts_that_are_multiplied_all_at_once() -> None:
    """`grouped_mm`, by which transformers calls experts unless told otherwise; not in float64."""
    transformers = pytest.importorskip("transformers")

    def build() -> nn.Module:
        return transformers.MixtralForCausalLM(
            transformers.MixtralConfig(
                vocab_size=23, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
                num_experts_per_tok=2, max_position_embeddings=16,
                experts_implementation="grouped_mm",
            )
        )  # fmt: skip

    words = REGISTRY["mixtral_of_experts"].inputs
    watched = Watched(Specimen("experts_at_once", "", build, words), torch.float32)
    for n in (4, 4, 6):
        assert not watched.complaint(watched.specimen.batch(n, torch.float32, seed=n))
        assert not {"masked", "loop"} & set(watched.per_sample.routes.values())


@pytest.mark.parametrize("top", [1, 2])
def test_experts_that_come_and_go(top: int) -> None:
    """In one batch an expert is idle, in the next it has all of one sample."""

    def forward(net: Any, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        shares, chosen = net.router(rows).softmax(1).topk(top, 1)
        h = torch.zeros_like(rows)
        for e in range(4):
            places, rank = (chosen == e).nonzero(as_tuple=True)
            if len(places):
                made = F.linear(F.silu(F.linear(rows[places], net.up[e])), net.down[e])
                h = h.index_add(0, places, shares[places, rank, None] * made)
        return net.head((rows + h).view_as(x).mean(1))

    watched = one_off(
        Net(
            forward, router=nn.Linear(6, 4), up=weight(4, 5, 6), down=weight(4, 6, 5),
            head=nn.Linear(6, 3),
        ),
        sequences(4, 6),
    )  # fmt: skip
    pull = watched.model.router.weight.detach().float()
    x = torch.randn(5, 4, 6)
    batches = [x, _rows_shuffled(x, 1), x + 9 * pull[0], x - 3 * pull[1], x[:2], x.flip(0)]
    own = torch.cat([x[:1] + 9 * pull[2], x[1:] + 9 * pull[3]])  # one sample owns an expert
    for each in [*batches, own, own.flip(0)]:
        assert not watched.complaint(batch_of(each))


def test_graph_that_changes_with_n() -> None:
    """The same function, by other operations for an odd n than for an even one."""

    def forward(net: Any, x: Tensor) -> Tensor:
        if len(x) % 2:
            h = torch.relu(F.linear(x, net.hidden.weight, net.hidden.bias))
        else:
            h = ((net.hidden.weight @ x.t()) + net.hidden.bias[:, None]).clamp(min=0).t()
        return net.head(h)

    watched = one_off(Net(forward, hidden=nn.Linear(6, 8), head=nn.Linear(8, 3)), vectors(6))
    for n in (4, 5, 2, 1, 6, 3):
        assert not watched.complaint(watched.specimen.batch(n, seed=n))


def test_graph_that_changes_with_the_data() -> None:
    """The same function by two ways, the way chosen by the largest input of the batch."""

    def forward(net: Any, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        if rows.max() > 2:
            rows = x.transpose(0, 1).flatten(0, 1)
            h = torch.tanh(net.hidden(rows)).view(x.shape[1], len(x), -1).transpose(0, 1)
        else:
            h = torch.tanh(net.hidden(rows)).view(*x.shape[:2], -1)
        return net.head(h.sum(1))

    watched = one_off(Net(forward, hidden=nn.Linear(6, 8), head=nn.Linear(8, 3)), sequences(4, 6))
    x = torch.rand(4, 4, 6)
    for each in (x, 4 * x, x - 1, x[:3] * 4, x[:3]):
        assert not watched.complaint(batch_of(each))


def test_optional_inputs_come_and_go() -> None:
    def forward(net: Any, x: Tensor, extra: Tensor | None = None) -> Tensor:
        h = net.first(x) if extra is None else net.first(x) + net.side(extra)
        return net.head(torch.relu(h))

    net = Net(forward, first=nn.Linear(6, 8), side=nn.Linear(4, 8), head=nn.Linear(8, 3))
    watched = one_off(net, vectors(6))
    for n, given in ((4, False), (4, True), (3, True), (4, False)):
        raw = {"x": torch.randn(n, 6).double()}
        raw |= {"extra": torch.randn(n, 4).double()} if given else {}
        assert not watched.complaint(replace(Batch.of(raw), labels=torch.arange(n)))


def test_weights_that_moved_between_batches() -> None:
    watched = Watched(REGISTRY["weight_norm_by_parametrization"])
    batch = watched.specimen.batch()
    for step in range(3):
        assert not watched.complaint(batch)
        with torch.no_grad():
            for p in watched.model.parameters():
                p.mul_(1.3)
                if step:
                    p.data = p.data.clone()


SOME = torch.tensor([1, 0, 3, 1])
CHOOSING = {
    "gather": lambda x, at: x.gather(1, at),
    "index": lambda x, at: x[torch.arange(len(x)), at[:, 0, 0]].unsqueeze(1),
    "index_select": lambda x, at: x.index_select(1, SOME),
    "scatter": lambda x, at: x.scatter(1, at, x.flip(1)),
    "scatter_add": lambda x, at: x.scatter_add(1, at, x.tanh()),
    "index_add": lambda x, at: x.index_add(1, SOME, x.exp()),
    "index_copy": lambda x, at: x.index_copy(1, torch.tensor([2, 0, 1, 3]), x.sin()),
    "sort": lambda x, at: x.sort(1)[0],
    "topk": lambda x, at: x.topk(3, 1)[0],
    "cummax": lambda x, at: x.cummax(1)[0],
    "cummin": lambda x, at: x.cummin(1)[0],
}


def _trust_after_batches(net: Net) -> set[Trust]:
    watched = one_off(net, sequences(4, 6))
    for n, seed in ((5, 1), (5, 2), (4, 3), (4, 4)):
        assert not watched.complaint(watched.specimen.batch(n, seed=seed))
    return {known.trust for known in watched.per_sample._ladder.plans._known.values()}


@pytest.mark.parametrize("name", CHOOSING)
def test_places_within_a_sample_that_the_data_choose(name: str) -> None:
    """Only which tokens: no other batch has to be looked at first."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = torch.tanh(net.first(x))
        chosen = CHOOSING[name](h, h.detach().argsort(1))
        return net.last(torch.tanh(net.middle(chosen))).sum(1)

    layers = {"first": nn.Linear(6, 5), "middle": nn.Linear(5, 5), "last": nn.Linear(5, 3)}
    assert _trust_after_batches(Net(forward, **layers)) == {Trust.KEPT}


def test_rows_that_are_in_order_until_they_are_not() -> None:
    """A plan that was kept for batches of sorted samples is not used for others."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = torch.tanh(net.first(x))
        order, last = x[:, 0, 0].argsort(), x[:, :, 1].argmax(1)
        sorted_rows = torch.tanh(net.middle(h[order, last[order]]))
        # one weight for both: what the two contribute has to be of the same sample
        return net.last(sorted_rows[order.argsort()] + torch.tanh(net.middle(h.mean(1))))

    watched = one_off(
        Net(forward, first=nn.Linear(6, 5), middle=nn.Linear(5, 5), last=nn.Linear(5, 3)),
        sequences(4, 6),
    )
    x = torch.randn(5, 4, 6).double()
    x = x[x[:, 0, 0].argsort()]
    for each in (x, 0.5 * x, x[[3, 1, 0, 4, 2]], x, x[[1, 0, 2, 3, 4]]):
        assert not watched.complaint(batch_of(each))


def test_places_in_the_batch_that_the_data_choose() -> None:
    """These stay within a sample, too, but the operation does not say so."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = torch.tanh(net.first(x))
        begins = 4 * torch.arange(len(x)).repeat_interleave(4)
        own = begins[:, None] + h.detach().argsort(1).flatten(0, 1)
        rows = h.flatten(0, 1).gather(0, own)
        return net.last(torch.tanh(net.middle(rows))).view(*x.shape[:2], -1).sum(1)

    layers = {"first": nn.Linear(6, 5), "middle": nn.Linear(5, 5), "last": nn.Linear(5, 3)}
    assert _trust_after_batches(Net(forward, **layers)) == {Trust.GROWN}


INPUTS = {
    "a leaf with gradients": lambda x, before, net: x.requires_grad_(),
    "made by another network": lambda x, before, net: before(x).tanh(),
    "made from a leaf": lambda x, before, net: x.requires_grad_() * 2,
    "made by a layer of the same model": lambda x, before, net: net.first(x),
}


@pytest.mark.parametrize("looped", ["first.weight", "middle.weight"])
@pytest.mark.parametrize("samples", [1, 2, 6])
def test_inputs_that_the_model_itself_made_are_there_for_every_pass(
    looped: str, samples: int
) -> None:
    """A loop, a look at the price, and the user afterwards: each goes back to the same layer."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.last(torch.tanh(net.middle(x)))

    torch.manual_seed(0)
    net = Net(forward, first=nn.Linear(6, 6), middle=nn.Linear(6, 5), last=nn.Linear(5, 3)).double()
    parameters = dict(net.named_parameters())
    parameters[looped].register_hook(lambda g: g / (1 + g.norm()))
    engine = PerSample(net, parameters, SquaredNorm())
    for _ in range(2):
        raw = torch.randn(samples, 6).double()
        given = net.first(raw).tanh()
        with borrowed(net), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sums = {name: value.clone() for name, value in engine(Batch.of(given)).items()}
        expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for row in raw.split(1):
            score = forward(net, net.first(row).tanh()).square().sum()
            for name, g in zip(parameters, torch.autograd.grad(score, list(parameters.values()))):
                expected[name] += g.abs()
        for name, value in expected.items():
            torch.testing.assert_close(sums[name], value, rtol=1e-9, atol=1e-9)
        given.sum().backward()


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_with_a_past_in_autograd(kind: str) -> None:
    """A plan is kept, whatever came before the model, unless it is the model itself."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.last(torch.tanh(net.middle(x)))

    torch.manual_seed(0)
    net = Net(forward, first=nn.Linear(6, 6), middle=nn.Linear(6, 5), last=nn.Linear(5, 3)).double()
    before, parameters = nn.Linear(6, 6).double(), dict(net.named_parameters())
    engine = PerSample(net, parameters, SquaredNorm())
    for _ in range(2):
        x = torch.randn(5, 6).double()
        with borrowed(net):
            sums = engine(Batch.of(INPUTS[kind](x.clone(), before, net)))
            truth = [
                sums_by_loop(
                    net,
                    Batch.of(INPUTS[kind](row.clone(), before, net)),
                    parameters,
                    SquaredNorm(),
                    output=first_tensor,
                )
                for row in x.split(1)
            ]
        assert bool(sums["first.weight"].any()) == ("same model" in kind)
        for name, found in sums.items():
            expected = torch.stack([one[name] for one in truth]).sum(0)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if "same model" not in kind:
        assert {known.trust for known in engine._ladder.plans._known.values()} == {Trust.KEPT}
