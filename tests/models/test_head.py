import pytest
import torch
from torch import nn

from retain.errors import ModelError
from retain.models.head import find_head, without_head

INPUTS = torch.rand(2, 6)


class WithAuxiliary(nn.Module):
    """The head is registered before a Linear for another purpose, and before an unused one."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)
        self.auxiliary = nn.Linear(5, 3)
        self.unused = nn.Linear(5, 3)

    def forward(self, inputs):
        features = self.body(inputs).relu()
        self.auxiliary(features)
        return {"aux": 0, "logits": self.head(features)}


def test_the_head_is_what_makes_the_output_not_what_is_registered_last():
    assert find_head(WithAuxiliary(), "it", INPUTS) == "head"


def test_taking_it_off_keeps_what_stands_before_it():
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3))
    head = find_head(model, "it", INPUTS)
    backbone, features = without_head(model, head)
    assert features == 5
    assert any(isinstance(module, nn.Dropout) for module in backbone.modules())
    expected = backbone[0](INPUTS)
    assert torch.equal(backbone.eval()(INPUTS), expected)


def test_a_reshaped_output_is_still_the_heads():
    model = nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1)), nn.Flatten())
    assert find_head(model, "it", INPUTS) == "0"


def test_a_linear_alone_is_its_own_head():
    backbone, features = without_head(nn.Linear(6, 3), "")
    assert features == 6
    assert torch.equal(backbone(INPUTS), INPUTS)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.same = nn.Linear(6, 6)

    def forward(self, inputs):
        return self.same(self.same(inputs))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 3, 1)), "no Linear is used.*Conv1d"),
        (nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), r"last Linear, '0'.*such as a softmax"),
        (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 3)), r"shape \(2, 2, 3\).*Flatten"),
        (Twice(), "uses 'same' several times"),
    ],
)
def test_models_without_a_head_are_refused(model, message):
    with pytest.raises(ModelError, match=message):
        find_head(model, "it", INPUTS)


def test_looking_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_head(model, "it", INPUTS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
