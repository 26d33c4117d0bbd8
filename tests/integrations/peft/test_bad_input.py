"""What cannot be held is refused by name, with what to do instead."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError, ModelError, NonFiniteError, StateError
from retain.integrations.peft import LoraPenalty, base_weights
from tests.integrations.peft import adapted_models as made

peft = pytest.importorskip("peft")


def test_an_adapter_on_a_weight_without_importance():
    net, _ = made.dense()
    memory = retain.MAS(net, exclude="2").observe(torch.randn(4, 6), progress=False).consolidate()
    model = made.adapt(net, target_modules=["0", "2"])
    LoraPenalty(memory, model)  # left out on purpose
    memory.exclude = []
    with pytest.raises(ModelError, match=r"without importance: 2\.weight \(of 2\).*base_weights"):
        LoraPenalty(memory, model)


def test_a_memory_of_the_adapter_itself():
    net, data = made.dense()
    model = made.adapt(net, target_modules=["0"])
    memory = retain.MAS(model).observe(data, progress=False).consolidate()
    with pytest.raises(ModelError, match=r"0\.weight.*importance of the adapter itself \(.*lora_"):
        LoraPenalty(memory, model)


def test_a_fresh_adapter_has_no_importance_and_that_is_said():
    net, data = made.dense()
    model = peft.get_peft_model(net, peft.LoraConfig(target_modules=["0"]))
    memory = retain.MAS(model)
    with pytest.warns(UserWarning, match=r"of .*0\.lora_A\.default\.weight is 0.*LoraPenalty\(mem"):
        memory.observe(data, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.observe(data, progress=False).consolidate()  # once is enough


def test_a_memory_of_another_model():
    _, memory = made.remembered(made.words)
    model = made.adapt(made.dense()[0], target_modules=["0"])
    with pytest.raises(
        ModelError, match=r"not of this model: table\.weight was \(11, 6\) and is n"
    ):
        LoraPenalty(memory, model)
    other = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    memory = retain.MAS(other).observe(torch.randn(4, 6), progress=False).consolidate()
    with pytest.raises(ModelError, match=r"0\.weight was \(5, 6\) and is \(8, 6\); .*2\.weight"):
        LoraPenalty(memory, model)


def test_observed_but_not_consolidated():
    net, data = made.dense()
    memory = retain.MAS(net).observe(data, progress=False)
    model = made.adapt(net, target_modules=["0"])
    with pytest.raises(StateError, match="never consolidated"):
        LoraPenalty(memory, model)


def test_no_memory_at_all():
    with pytest.raises(InputError, match=r"got a Linear as memory; expected retain\.MAS"):
        LoraPenalty(nn.Linear(2, 2), nn.Linear(2, 2))


def test_no_adapter():
    net, memory = made.remembered(made.dense)
    with pytest.raises(ModelError, match="no LoRA layer in the Sequential"):
        LoraPenalty(memory, net)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (lambda: peft.LoraConfig(target_modules=["0"], use_dora=True), r"0 \(DoRA"),
        (lambda: peft.LoHaConfig(target_modules=["0", "2"]), r"0 \(loha\.Linear\), 2 \(loha"),
        (lambda: peft.IA3Config(target_modules=["0"], feedforward_modules=[]), r"0 \(ia3\.Linear"),
        (lambda: peft.VeraConfig(target_modules=["0"]), r"0 \(vera\.Linear"),
        (lambda: peft.AdaLoraConfig(target_modules=["0"], total_step=9), r"0 \(adalora\.SVD"),
    ],
)
def test_other_kinds_are_named(config, named):
    net, memory = made.remembered(made.dense)
    model = peft.get_peft_model(net, config())
    with pytest.raises(ModelError, match=named):
        LoraPenalty(memory, model)


def test_attention_that_peft_adds_to_twice_is_named():
    net = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    memory = retain.MAS(net).observe(torch.randn(3, 2, 4), progress=False).consolidate()
    model = made.adapt(net, target_modules=["self_attn"])
    with pytest.raises(ModelError, match=r"self_attn \(MultiheadAttention, to whose out_proj"):
        LoraPenalty(memory, model)


def test_a_convolution_in_groups_is_named():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())
    memory = retain.MAS(net).observe(torch.randn(3, 4, 4, 4), progress=False).consolidate()
    with pytest.warns(UserWarning, match="groups > 1"):
        model = made.adapt(net, target_modules=["0"])
    with pytest.raises(ModelError, match=r"0 \(a convolution in 2 groups"):
        LoraPenalty(memory, model)


def test_single_trained_tokens_are_named():
    net, memory = made.remembered(made.words)
    model = made.adapt(net, target_modules=["out"], trainable_token_indices={"table": [1, 2]})
    with pytest.raises(
        ModelError, match=r"table.* \(trainable_token_indices\)|table.*trainable_to"
    ):
        LoraPenalty(memory, model)


def test_a_trainable_weight_below_its_adapter():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0"])
    model.get_base_model()[0].base_layer.weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"Both a weight and its adapter.*0\.weight"):
        LoraPenalty(memory, model)


def test_merged_switched_and_unloaded_adapters():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0"])
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["0"]))
    penalty = LoraPenalty(memory, model)
    before = penalty.penalty()
    model.merge_adapter()
    with pytest.raises(StateError, match=r"'default' is merged into '0'.*unmerge_adapter"):
        penalty.penalty()
    with pytest.raises(StateError, match="unmerge_adapter"), base_weights(model):
        pass
    model.unmerge_adapter()
    model.set_adapter("other")
    with pytest.raises(StateError, match=r"Other adapters are active in '0'.*other, not default"):
        penalty.penalty()
    model.set_adapter("default")
    torch.testing.assert_close(penalty.penalty(), before)
    model.unload()
    with pytest.raises(StateError, match="no longer in the model"):
        penalty.drift()


def test_a_type_that_cannot_hold_importance():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0"])
    with pytest.raises(InputError, match=r"dtype=torch\.int8"):
        LoraPenalty(memory, model, dtype=torch.int8)


def test_importance_that_a_type_cannot_hold():
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    memory = retain.MAS(net).observe(1e3 * torch.randn(4, 6), progress=False).consolidate()
    model = made.adapt(net, target_modules=["0"])
    with pytest.raises(NonFiniteError, match=r"0\.weight does not fit into torch\.float16"):
        LoraPenalty(memory, model, dtype=torch.float16)


def test_adapters_that_come_later():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0"])
    penalty = LoraPenalty(memory, model)
    before = penalty.penalty()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["2"]))
    torch.testing.assert_close(penalty.penalty(), before)  # it is not active, and moves nothing
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(StateError, match=r"active in '2' than when.*new LoraPenalty"):
        penalty.penalty()
    with pytest.raises(StateError, match="active in '2' than when"):
        penalty.drift()
    torch.testing.assert_close(LoraPenalty(memory, model).penalty(), before)  # its B is still 0


def test_adapters_that_come_later_than_the_optimizer_was_attached():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0"])
    penalty = LoraPenalty(memory, model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    penalty.attach(optimizer)
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["2"]))
    model.base_model.set_adapter(["default", "other"])
    model(torch.randn(3, 6, dtype=torch.float64)).sum().backward()
    with pytest.raises(StateError, match="activated"):
        optimizer.step()


def test_copies_that_come_later():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0"])
    penalty = LoraPenalty(memory, model)
    penalty.penalty()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(StateError):
        penalty.penalty()
