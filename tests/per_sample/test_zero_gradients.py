"""Zero gradients say nothing about who owns them: dead samples, class tokens, equal samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from retain.samples.batches import Batch

from .zoo import REGISTRY, Watched, batch_of, one_off
from .zoo.specimen import images, sequences, vectors

LAST_ONLY = ["vision_transformer_with_class_token", "causal_attention_by_hand", "gpt2", "lstm"]


@pytest.mark.parametrize("name", LAST_ONLY)
def test_most_gradient_rows_are_zero(name: str) -> None:
    """F(x) looks at one token: in the last layers most rows of the gradient are zero."""
    specimen = REGISTRY[name]
    if name == "gpt2":
        specimen = replace(specimen, output=lambda returned: returned.logits[:, -1])
    watched = Watched(specimen)
    for n in (2, 5, 3, 1, 4):
        assert not watched.complaint(specimen.batch(n, seed=n))


def _dying(x_dims: int) -> nn.Module:
    """Where the input is zero every unit is dead, and the output does not depend on its weights."""
    first = nn.Linear(6, 8) if x_dims == 2 else nn.Conv2d(3, 8, 3)
    body = [nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    if x_dims == 4:
        body.insert(1, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model = nn.Sequential(first, *body)
    with torch.no_grad():
        for layer in (first, body[-3]):
            layer.bias.fill_(-0.05).mul_(1 + torch.rand(8))
    return model


ACTIVE = [
    [True, False, False, False, False],
    [False, False, False, False, True],
    [True, True, True, True, True],
    [False, False, True, False, False],
    [False] * 5,
    [False, True],
    [True, False, True],
    [False],
    [True],
]


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("shape", [(6,), (3, 6, 6), (4, 6)], ids=["vectors", "images", "tokens"])
def test_dead_samples(shape: tuple[int, ...], first: int) -> None:
    """Exactly one sample is active, or all, or none; whichever comes first teaches the engine."""
    watched = one_off(_dying(4 if len(shape) == 3 else 2), lambda n: torch.randn(n, *shape))
    for active in ACTIVE[first:] + ACTIVE[:first]:
        x = 3 * torch.randn(len(active), *shape) * torch.tensor(active).view(-1, *[1] * len(shape))
        assert not watched.complaint(batch_of(x)), active


@pytest.mark.parametrize("first", [0, 1, 2])
def test_one_active_token_per_sample(first: int) -> None:
    watched = one_off(_dying(2), sequences(4, 6))
    batches = []
    for seed in range(3):
        x = torch.zeros(5, 4, 6)
        x[torch.arange(5), torch.randint(4, (5,))] = 3 * torch.randn(5, 6)
        batches.append(x if seed < 2 else 3 * torch.randn(5, 4, 6))
    for x in batches[first:] + batches[:first]:
        assert not watched.complaint(batch_of(x))


@pytest.mark.parametrize("name", ["mlp_with_batch_norm", "conv2d_plain", "tied_language_model"])
def test_identical_samples(name: str) -> None:
    """Every sample has the same gradient: values cannot tell who owns it."""
    watched = Watched(REGISTRY[name])
    (x,) = watched.specimen.batch(1).args
    (other,) = watched.specimen.batch(6, seed=9).args
    for each in (x.expand(6, *x.shape[1:]), other, x.repeat(3, *[1] * (x.ndim - 1))):
        batch = replace(Batch.of((each,)), labels=torch.zeros(len(each), dtype=torch.long))
        assert not watched.complaint(batch)


@pytest.mark.parametrize(
    ("name", "n", "dtype"),
    [
        ("mlp_with_batch_norm", 300, torch.float32),
        ("mlp_with_batch_norm", 1100, torch.float64),
        ("encoder_sequence_first_inside", 150, torch.float32),
        ("conv1d", 150, torch.float32),
        ("embedding_sequence_first", 300, torch.float32),
        ("batch_in_columns", 300, torch.float32),
        ("hard_mixture_of_experts", 150, torch.float32),
    ],
)
def test_more_samples_than_exponents(name: str, n: int, dtype: torch.dtype) -> None:
    """2ⁿ has no place in a float: 127 binary exponents in float32, 1023 in float64."""
    watched = Watched(REGISTRY[name], dtype)
    for size in (n, 5, n - 1):
        assert not watched.complaint(watched.specimen.batch(size, dtype))


def test_gradients_of_very_different_size() -> None:
    """Samples 10¹² apart in size: the small ones still count exactly."""
    watched = one_off(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 3)),
        vectors(6),
    )
    x = torch.randn(6, 6)
    for scale in (torch.logspace(-3, 3, 6), torch.logspace(6, -6, 6), torch.ones(6)):
        assert not watched.complaint(batch_of(x * scale[:, None]))


ZEROS = {
    "head": ("heads.head.weight", "heads.head.bias"),
    "residual": ("residual.2.weight", "residual.2.bias"),
}


def _silent(which: str) -> nn.Module:
    """Networks as they are made, of which a part begins with zeros."""
    if which == "head":
        return pytest.importorskip("torchvision").models.VisionTransformer(
            image_size=16, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=12,
            num_classes=3,
        )  # fmt: skip

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)
            self.residual = nn.Sequential(
                nn.Conv2d(3, 3, 3), nn.Tanh(), nn.ConvTranspose2d(3, 3, 3)
            )

        def forward(self, x):
            h = torch.tanh(self.stem(x))
            return self.head((h + self.residual(h)).mean((2, 3)))

    return Residual()


@pytest.mark.parametrize("which", ["head", "residual"])
def test_what_begins_with_zeros_is_no_riddle_for_ever(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan is kept although some gradients are zero, until they are not; then it is made anew."""
    watched = one_off(_silent(which), images(3, 16, 16))
    zeros = [watched.model.get_parameter(name) for name in ZEROS[which]]
    for p in zeros:  # the zoo has shaken them
        nn.init.zeros_(p)
    passes, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or grad(*a, **k))
    for zero in (True, False):
        for seed, n in enumerate((5, 5, 7)):
            assert not watched.complaint(watched.specimen.batch(n, seed=seed))
            assert not {"masked", "loop"} & set(watched.per_sample.routes.values())
        for n in (5, 7):
            passes.clear()
            watched.engine(watched.specimen.batch(n, seed=9))
            assert len(passes) == 1
        for p in zeros:
            nn.init.normal_(p, std=0.3 if zero else 0)
