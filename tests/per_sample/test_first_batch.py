"""What a first batch finds out, and what is let go on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from retain.borrowed import borrowed
from retain.errors import RetainError
from retain.per_sample import PerSample, sums_by_loop
from retain.per_sample.graph import Graph
from retain.per_sample.scores import Exact, SquaredNorm
from retain.per_sample.trust import Ladder
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

WIDTH = 6


class FirstToken(nn.Module):
    """Classifies by the first of its tokens, so that most gradients at its layers are zero."""

    def __init__(self, siblings: bool = True) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH) if siblings else nn.Identity()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_ntd: torch.Tensor) -> torch.Tensor:
        n, t, d = x_ntd.shape
        flat = self.mix(x_ntd.reshape(n * t, d)).reshape(n, t, d)
        mixed = flat + flat.mean(1, keepdim=True)  # every token matters to the first
        return self.layer(mixed.reshape(n * t, d)).reshape(n, t, d)[:, 0].tanh()


def engine_of(model: nn.Module) -> PerSample:
    return PerSample(model, dict(model.named_parameters()), SquaredNorm(), output=first_tensor)


def truth(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    return sums_by_loop(model, Batch.of(x), parameters, SquaredNorm(), output=first_tensor)


def assert_exact(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


def counted_looks(
    kind: type[nn.Module], samples: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """How often graphs had been probed after each of three batches, whose sums are exact."""
    torch.manual_seed(0)
    model = kind().double()
    engine = engine_of(model)
    plainly, probed = Ladder._probe, [0]

    def counted(self: Ladder, graph: Graph, n: int) -> object:
        probed[0] += 1
        return plainly(self, graph, n)

    monkeypatch.setattr(Ladder, "_probe", counted)
    looks = []
    for _ in range(3):
        x = torch.randn(samples, tokens, WIDTH, dtype=torch.float64)
        with borrowed(model):
            assert_exact(engine(Batch.of(x)), truth(model, x))
        looks.append(probed[0])
    return looks


@pytest.mark.parametrize("tokens", [2, 8, 9])
@pytest.mark.parametrize("samples", [5, 8, 40])
def test_few_live_rows_are_laid_out_as_their_neighbours(
    tokens: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = FirstToken().double()
    engine = engine_of(model)
    probed: list[int] = []
    plainly = Ladder._probe

    def noted(self: Ladder, graph: Graph, n: int) -> object:
        probed.append(n)
        return plainly(self, graph, n)

    monkeypatch.setattr(Ladder, "_probe", noted)
    for _ in range(3):
        x = torch.randn(samples, tokens, WIDTH, dtype=torch.float64)
        with borrowed(model):
            assert_exact(engine(Batch.of(x)), truth(model, x))
    assert probed == [3]  # a few samples of the first batch, and never a whole batch


@pytest.mark.parametrize(("tokens", "samples"), [(65, 16), (65, 8), (17, 8), (5, 4)])
def test_a_sequence_by_one_longer_than_a_multiple_of_the_samples_is_looked_at_once(
    tokens: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a vision transformer, whose patches are a power of two, and a class token."""
    test_few_live_rows_are_laid_out_as_their_neighbours(samples, tokens, monkeypatch)


class FirstTokenOfTwo(nn.Module):
    """The same behind a layer that sees the tokens first: both of its kind are neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.Linear(WIDTH, WIDTH)
        self.body = FirstToken()

    def forward(self, x_ntd: torch.Tensor) -> torch.Tensor:
        n, t, d = x_ntd.shape
        flat = self.across(x_ntd.transpose(0, 1).reshape(t * n, d))
        return self.body(flat.reshape(t, n, d).transpose(0, 1))


@pytest.mark.parametrize("tokens", [10, 37, 50, 106, 145])
@pytest.mark.parametrize("samples", [2, 3, 4, 6, 7, 8, 9, 12, 24, 36])
def test_neighbours_that_disagree_are_told_apart_once(
    tokens: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a vision transformer whose attention goes by tokens and whose other layers do not.

    The class token of 37 is every 37th row of so many times n; for three samples, and for four,
    and for every number that 36 is a multiple of, it is the owner's row in both layouts.
    """
    looks = counted_looks(FirstTokenOfTwo, samples, tokens, monkeypatch)
    assert looks[0] == looks[1] == looks[2]


@pytest.mark.parametrize("tokens", [2, 7, 8, 9])
@pytest.mark.parametrize("samples", [2, 3])
def test_few_live_rows_of_two_or_three_samples_are_looked_at_once(
    tokens: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = counted_looks(FirstToken, samples, tokens, monkeypatch)
    assert looks[0] == looks[1] == looks[2]


class FirstTokenAlone(FirstToken):
    """The same without a neighbour, as where one layer is trained and all others are frozen."""

    def __init__(self) -> None:
        super().__init__(siblings=False)


class FirstTokenBehindAnother(nn.Module):
    """Its only neighbour sees as many rows in another order: what is likely is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.across, self.body = nn.Linear(WIDTH, WIDTH), FirstToken(siblings=False)

    def forward(self, x_ntd: torch.Tensor) -> torch.Tensor:
        n, t, d = x_ntd.shape
        flat = self.across(x_ntd.transpose(0, 1).reshape(t * n, d)).softmax(1)
        return self.body(flat.reshape(t, n, d).transpose(0, 1))


@pytest.mark.parametrize("kind", [FirstTokenAlone, FirstTokenBehindAnother])
@pytest.mark.parametrize("tokens", [7, 8, 10, 11, 16, 37, 64])
@pytest.mark.parametrize("samples", [1, 2, 3, 5, 7, 8, 36])
def test_what_neighbours_cannot_tell_is_told_once_by_other_numbers_of_samples(
    kind: type[nn.Module], samples: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = counted_looks(kind, samples, tokens, monkeypatch)
    assert looks[0] == looks[1] == looks[2]


def test_without_neighbours_a_batch_of_another_size_is_exact_as_well() -> None:
    torch.manual_seed(0)
    model = FirstToken(siblings=False).double()
    engine = engine_of(model)
    for samples in (8, 8, 5):
        x = torch.randn(samples, 8, WIDTH, dtype=torch.float64)
        with borrowed(model):
            assert_exact(engine(Batch.of(x)), truth(model, x))


def test_a_batch_of_which_a_few_tell_wrongly_may_have_several_scores_a_sample() -> None:
    """The last of their passes lets the graph go, and then the plan is kept."""
    torch.manual_seed(0)
    model = FirstTokenBehindAnother().double()
    parameters = dict(model.named_parameters())
    engine = PerSample(model, parameters, Exact(), power=2)
    for _ in range(2):
        x = torch.randn(7, 16, WIDTH, dtype=torch.float64)
        with borrowed(model):
            expected = sums_by_loop(
                model, Batch.of(x), parameters, Exact(), power=2, output=first_tensor
            )
            assert_exact(engine(Batch.of(x)), expected)


class LastOfMany(nn.Module):
    """Reads each text to its last token, as far as the longest goes; later steps are of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_ntd: torch.Tensor) -> torch.Tensor:
        h, after = torch.zeros_like(x_ntd[:, 0]), []
        for x_nd in x_ntd.unbind(1):
            h = torch.tanh(self.step(h) + x_nd)
            after.append(h)
        ends = x_ntd[:, 0, 0].abs().long()
        return torch.stack(after, 1)[torch.arange(len(x_ntd)), ends]


def looks_at_texts(samples: int, longest: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often graphs had been probed after each batch of texts, of which the first are short."""
    probed, plainly = list[int](), Ladder._probe

    def noted(self: Ladder, graph: Graph, n: int) -> object:
        probed.append(n)
        return plainly(self, graph, n)

    monkeypatch.setattr(Ladder, "_probe", noted)
    torch.manual_seed(0)
    model = LastOfMany().double()
    engine, looks = engine_of(model), []
    for end in longest:
        x = torch.randn(samples, 6, WIDTH, dtype=torch.float64)
        x[:, 0, 0] = (torch.arange(samples) // 2).clamp(max=end)
        x[-1, 0, 0] = end
        with borrowed(model):
            assert_exact(engine(Batch.of(x)), truth(model, x))
        looks.append(len(probed))
    return looks


def test_steps_that_only_later_samples_take_are_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few samples have gradients of zero where the batch has others."""
    looks = looks_at_texts(8, [5, 5, 5], monkeypatch)
    assert looks[0] == looks[1] == looks[2]


def test_steps_that_only_some_batches_take_are_looked_at_until_all_were_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Texts that are padded to one length, of which each batch has another longest.

    As many as a step is wide, so that gradients of zero might be laid out in either way.
    """
    looks = looks_at_texts(6, [3, 2, 4, 3, 5, 4, 5, 1, 3, 5], monkeypatch)
    assert looks[4] == looks[-1]


class SavedOrNot(nn.Module):
    """Shows the graph node of its inner activation, to ask afterwards what that still holds."""

    def __init__(self, nodes: list[Any]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.show = nodes.append

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).tanh()
        if len(x) > 1 and hidden.requires_grad:
            self.show(hidden.grad_fn)
        return self.second(hidden)


def test_activations_are_let_go_on_the_way_of_a_known_graph() -> None:
    nodes: list[Any] = []
    model = SavedOrNot(nodes)
    engine = engine_of(model)
    with borrowed(model):
        for _ in range(2):  # in the first batch, a few samples have shown that nothing comes back
            engine(Batch.of(torch.randn(8, 4)))
            with pytest.raises(RuntimeError, match="freed"):
                _ = nodes[-1]._saved_result


@pytest.mark.parametrize("samples", [4, 20])
def test_a_few_samples_go_before_the_batch(samples: int) -> None:
    """So that no other activations stand beside those of the whole batch."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    noted: list[int] = []
    model.register_forward_pre_hook(lambda _, args: noted.append(len(args[0])))
    engine = engine_of(model)
    with borrowed(model):
        engine(Batch.of(torch.randn(samples, 4)))
        few, after = noted[:4], noted[4:]
        assert few == [3, 1, 1, 1]  # once for whether it writes to weights, and for all the rest
        assert after[0] == samples  # and then some of them once more, alone and without gradients
        noted.clear()
        engine(Batch.of(torch.randn(samples, 4)))
        assert noted == [samples]


def test_what_a_few_samples_showed_is_for_their_own_batch() -> None:
    """A first batch that fails half-way leaves nothing that another is computed by."""
    torch.manual_seed(0)
    start = 0

    class Net(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one, other = self.weight[:4], self.weight[start : start + 4]
            return torch.cat([x @ one.T, x.flip(1) @ other.T], 1).tanh()

    model = Net(4, 8, bias=False).double()
    engine = engine_of(model)
    x = torch.randn(5, 4, dtype=torch.float64)
    start = 4  # rows are used once
    with borrowed(model):
        bad = x.clone()
        bad[4] = torch.inf
        with pytest.raises(RetainError):
            engine(Batch.of(bad))
        start = 2  # some are used twice
        assert_exact(engine(Batch.of(x)), truth(model, x))


def test_large_numbers_that_no_float_could_sum_are_no_infinities() -> None:
    """Σ over all weights overflows; no weight's importance does."""
    model = nn.Linear(200, 300, bias=False)
    with torch.no_grad():
        model.weight.fill_(1e16)
    x = torch.full((4, 200), 1e9)
    engine = engine_of(model)
    with borrowed(model):
        found = engine(Batch.of(x))["weight"]
    assert found.isfinite().all()
    assert not found.sum().isfinite()
    torch.testing.assert_close(found, truth(model, x)["weight"], rtol=1e-5, atol=0)
