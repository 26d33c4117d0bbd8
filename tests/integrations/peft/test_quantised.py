"""Adapters on weights that are kept in a few bits: what is held is what the adapters add."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import retain
from retain.errors import FileError, ModelError
from retain.integrations.peft import LoraPenalty, base_weights
from tests.integrations.peft import adapted_models as made

peft = pytest.importorskip("peft")


class WholeNumbers(nn.Linear):
    """As bitsandbytes keeps them: the parameter is whole numbers, here in another shape, too."""

    def __init__(self, plain):
        super().__init__(1, 1)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.step = float(plain.weight.detach().abs().max()) / 127
        whole = (plain.weight.detach() / self.step).round().to(torch.int8).reshape(-1, 1)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.bias = plain.bias

    def forward(self, x):
        shape = self.out_features, self.in_features
        return linear(x, self.weight.reshape(shape).to(x) * self.step, self.bias)


class Format(torch.Tensor):
    """As torchao keeps them: a floating tensor by its looks, that knows a few operations only."""

    @staticmethod
    def __new__(cls, plain):
        return torch.Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype)

    def __init__(self, plain):
        self.plain = plain.half()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].plain.to(args[0].dtype))
        raise NotImplementedError(f"unimplemented: {function}")


class InAFormat(nn.Linear):
    def __init__(self, plain):
        super().__init__(plain.in_features, plain.out_features)
        self.weight = nn.Parameter(Format(plain.weight.detach()), requires_grad=False)
        self.bias = plain.bias

    def forward(self, x):
        return linear(x, self.weight.plain.to(x), self.bias)


def quantised(kind):
    """(a model of the kind with an adapter, a memory of what it was before, data)."""
    net, data = made.dense()
    net, data = net.double(), data.double()
    memory = retain.MAS(net, strength=2.0).observe(data, progress=False).consolidate()
    packed = nn.Sequential(*(kind(m) if isinstance(m, nn.Linear) else m for m in net))
    model = peft.get_peft_model(packed, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    return model.double() if kind is nn.Linear else model, memory, data


def expected(model, memory):
    """λ Σ Ω (s B A)², by its formula."""
    total = 0.0
    for name in ("0", "2"):
        layer = model.get_base_model()[int(name)]
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        delta = layer.scaling["default"] * (b @ a)
        total = total + (memory.importance[f"{name}.weight"] * delta.square()).sum()
    return float((2.0 * total).detach())


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("kind", [WholeNumbers, InAFormat])
def test_what_adapters_add_is_held(kind, form, tmp_path):
    model, memory, data = quantised(kind)
    memory.save(tmp_path / "before.safetensors")
    penalty = LoraPenalty(retain.MAS(model), model)  # in another process
    penalty.load(tmp_path / "before.safetensors")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    with penalty.attach(optimizer, form=form):
        for _ in range(3):
            optimizer.zero_grad()
            model(data).square().sum().backward()
            optimizer.step()
    for one in (penalty, LoraPenalty(memory, model)):
        value = float(one.penalty().detach())
        assert value > 0
        assert value == pytest.approx(expected(model, memory), rel=1e-5)
    assert penalty.drift().relative > 0


@pytest.mark.parametrize("kind", [WholeNumbers, InAFormat])
def test_there_is_nothing_to_observe_of_them(kind, tmp_path):
    model, memory, data = quantised(kind)
    said = r"quantised, and have no gradients: 0 \(.*2 \(.*LoraPenalty\(retain\.MAS\(peft_model\)"
    with pytest.raises(ModelError, match=said), base_weights(model):
        pass
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" not in name and "bias" in name)
    of_biases = retain.MAS(model).observe(data, progress=False).consolidate()
    with pytest.raises(ModelError, match=f"without importance: 0.weight.*{said}"):
        LoraPenalty(of_biases, model)
    memory.save(tmp_path / "before.safetensors")
    with pytest.raises(FileError, match=r"This model has adapters: .*LoraPenalty\(retain\.MAS"):
        retain.load(tmp_path / "before.safetensors", model)
