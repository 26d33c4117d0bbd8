"""Which sample owns which element: found from gradients alone, and never guessed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retain.per_sample.layout import (
    NOBODY,
    Blocks,
    Layout,
    Owners,
    find_blocks,
    find_layouts,
    owners,
    probe_weights,
    verifying_weights,
)
from retain.per_sample.precision import Precision


def weights_of(samples: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The weights of the probing passes."""
    return probe_weights(samples, Precision(dtype), dtype, torch.device("cpu"))


def layouts(found: list[Tensor], samples: int) -> list[Layout]:
    """The layouts that explain what probing has found."""
    dtype = found[0].dtype
    return find_layouts(found, weights_of(samples, dtype), Precision(dtype))


def owner_of(found: list[Tensor], samples: int) -> Tensor | None:
    """The owner of every element of what probing has found."""
    dtype = found[0].dtype
    return owners(found, weights_of(samples, dtype), Precision(dtype))


def probes(owner: Tensor, samples: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The gradients that probing would see where element e belongs to owner[e]."""
    values = torch.randn(owner.shape).to(dtype)
    values[owner == NOBODY] = 0
    weights = weights_of(samples, dtype)
    return [values * w[owner.clamp_min(0)] for w in weights]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", [2, 3, 7, 33, 300, 2000])
def test_owner_is_read_from_powers_of_two(samples: int, dtype: torch.dtype) -> None:
    owner = torch.randint(-1, samples, (samples, 5))
    found = owner_of(probes(owner, samples, dtype), samples)
    assert found is not None
    assert torch.equal(found, owner)


def test_sums_over_samples_belong_to_nobody() -> None:
    values = torch.randn(4, 6, 3)
    mixed = [(values * w[:, None, None]).sum(0) for w in weights_of(4)]
    assert owner_of(mixed, 4) is None


def test_nan_is_not_taken_for_an_owner() -> None:
    found = probes(torch.arange(3).repeat_interleave(2), 3)
    found[1][0] = float("nan")
    assert owner_of(found, 3) is None


@pytest.mark.parametrize(
    ("shape", "dim", "outer", "inner"),
    [
        ((5, 7, 2), 0, 1, 1),  # [n, T, d]
        ((7, 5, 2), 1, 1, 1),  # [T, n, d]
        ((35, 2), 0, 1, 7),  # [n·T, d]
        ((35, 2), 0, 7, 1),  # [T·n, d]
        ((60, 2), 0, 3, 4),  # windows on both sides
        ((2, 5), 1, 1, 1),  # the batch in columns
        ((5, 5), 1, 1, 1),  # as many positions as samples
    ],
)
def test_layout_is_found(shape: tuple[int, ...], dim: int, outer: int, inner: int) -> None:
    layout = Blocks(dim, outer, 5, inner)
    owner = torch.empty(shape, dtype=torch.long)
    view = layout.split(owner).movedim(dim + 1, -1)
    view.copy_(torch.arange(5).expand(view.shape))
    assert layouts(probes(owner, 5), 5) == [layout]


def test_zeros_make_a_layout_uncertain() -> None:
    """A class token: one live row in four; with three samples, [n·4] looks like [4·n]."""
    owner = torch.full((12, 2), NOBODY)
    owner[::4] = torch.arange(3)[:, None]
    layout, *others = layouts(probes(owner, 3), 3)
    assert isinstance(layout, Blocks)
    assert others


def test_ragged_rows_have_owners() -> None:
    owner = torch.tensor([0, 0, 2, 1, 1, 1, 2])[:, None].expand(7, 3)
    (layout,) = layouts(probes(owner, 3), 3)
    assert isinstance(layout, Owners)
    assert layout.dim == 0


def test_no_rows_at_all_are_nobodys() -> None:
    """An expert that was given no token."""
    (layout,) = layouts(probes(torch.empty(0, 3, dtype=torch.long), 2), 2)
    assert isinstance(layout, Owners)
    assert layout.dim == 0
    assert layout.owner.shape == (0, 1)


@pytest.mark.parametrize("layout", [Blocks(1, 2, 3, 2), "owners"])
def test_only_keeps_one_sample(layout: Blocks | str) -> None:
    tensor = torch.randn(4, 12)
    owner = torch.arange(12) // 2 % 3
    kind = layout if isinstance(layout, Blocks) else Owners(owner[None], 3, 1)
    for k in range(3):
        assert torch.equal(kind.only(tensor, k), tensor * (owner == k))
    assert torch.equal(sum(kind.only(tensor, k) for k in range(3)), tensor)


@pytest.mark.parametrize("samples", [2, 16, 32, 33, 513])
def test_verifying_weights_differ_from_sample_to_sample(samples: int) -> None:
    weights = verifying_weights(
        samples, Precision(torch.float32), torch.float32, torch.device("cpu")
    )
    assert len(weights.unique()) == samples


@pytest.mark.parametrize("samples", [3, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "outer", "inner"), [(0, 1, 1), (1, 1, 1), (0, 1, 6), (0, 6, 1), (1, 2, 3)]
)
def test_regular_layouts_are_those_that_fit_every_owner(
    samples: int, dtype: torch.dtype, dim: int, outer: int, inner: int
) -> None:
    layout = Blocks(dim, outer, samples, inner)
    size = outer * samples * inner
    owner = torch.empty((size, 4) if dim == 0 else (7, size), dtype=torch.long)
    view = layout.split(owner).movedim(dim + 1, -1)
    view.copy_(torch.arange(samples).expand(view.shape))
    assert layouts(probes(owner, samples, dtype), samples) == [layout]


def test_one_foreign_element_makes_a_layout_irregular() -> None:
    """Also where a glance does not see it."""
    owner = torch.arange(3)[:, None].expand(3, 1000).clone()
    owner[2, 777] = 0
    (layout,) = layouts(probes(owner, 3), 3)
    assert isinstance(layout, Owners)
    assert torch.equal(layout.owner.expand(owner.shape), owner)


def test_every_layout_that_fits_is_found() -> None:
    """One live row in 8, as of a class token: with three samples, four layouts fit."""
    owner = torch.full((24, 2), NOBODY)
    owner[::8] = torch.arange(3)[:, None]
    found = find_blocks(probes(owner, 3), weights_of(3), Precision(torch.float32))
    assert [layout.inner for layout in found] == [2, 8]
    assert layouts(probes(owner, 3), 3) == found
