"""A passport as a memory: only of the very weights that it was made of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import retain
from retain.errors import FileError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "passport.safetensors"
    retain.passport(model, torch.randn(32, 4).split(8), progress=False).save(path)
    return path


def test_a_passport_holds_the_weights_that_it_was_made_of(model, path):
    memory = retain.load(path, model)
    assert set(memory.importance) == set(dict(model.named_parameters()))
    assert memory.tasks == 1


def test_a_passport_is_refused_by_other_weights(model, path):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].bias[0] += 1
    with pytest.raises(FileError, match=r"is of other weights: 1 of 4 differ, such as 2\.bias\."):
        retain.load(path, other)
