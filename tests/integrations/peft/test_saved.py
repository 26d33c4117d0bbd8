"""An adapter that was saved alone, merged into a file of weights without the network."""

import copy
import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import retain
from retain.cli.app import app
from retain.errors import FileError, InputError

peft = pytest.importorskip("peft")

from retain.integrations.peft.saved import merged_from  # noqa: E402


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.norm = nn.BatchNorm1d(6)
        self.conv = nn.Conv1d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens):
        features = self.words(tokens)
        for block in self.blocks:
            features = block(features).relu()
        features = self.norm(features.mT)
        return self.head(self.conv(features).relu().mean(-1))


TOKENS = torch.arange(24).reshape(4, 6) % 11
KINDS = {
    "linear": {"target_modules": ["blocks.0", "blocks.1"]},
    "rank-stabilised": {"target_modules": ["blocks.0"], "use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "target_modules": ["blocks.0", "blocks.1"],
        "rank_pattern": {"blocks.0": 2},
        "alpha_pattern": {"blocks.1": 5},
    },
    "dora": {"target_modules": ["blocks.0"], "use_dora": True},
    "convolution": {"target_modules": ["conv"]},
    "embedding": {"target_modules": ["words"]},
    "heads that are trained whole": {"target_modules": ["blocks.0"], "modules_to_save": ["head"]},
    "biases": {"target_modules": ["blocks.0"], "bias": "lora_only"},
}


def adapted(**asked):
    model = peft.get_peft_model(Network(), peft.LoraConfig(r=3, lora_alpha=7, **asked) if
        "lora_alpha" not in asked else peft.LoraConfig(r=3, **asked))  # fmt: skip
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) / 3)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_peft_makes_of_the_network(tmp_path, kind):
    model = adapted(**KINDS[kind])
    model.save_pretrained(tmp_path)
    found = merged_from(Network().state_dict(), tmp_path)
    expected = copy.deepcopy(model).merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name].to(tensor), tensor, atol=1e-6), name
    moved = [n for n, t in Network().state_dict().items() if not torch.equal(t, found[n])]
    assert moved


def test_layers_that_keep_their_weights_turned(tmp_path):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    base = nn.Sequential(conv1d(5, 4), nn.ReLU(), conv1d(2, 5))
    model = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=2, target_modules=["0", "2"], fan_in_fan_out=True),
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    model.save_pretrained(tmp_path)
    found = merged_from(base.state_dict(), tmp_path)
    expected = model.merge_and_unload().state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


@pytest.fixture
def files(tmp_path):
    base, model = Network().eval(), adapted(**KINDS["linear"])
    memory = retain.MAS(base).observe([TOKENS], progress=False).consolidate()
    memory.save(tmp_path / "memory.safetensors")
    torch.save(base.state_dict(), tmp_path / "base.pt")
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, base, model, memory


def repaired(folder, base, tuned, *more):
    line = ["repair", base, tuned, "--memory", "memory.safetensors", "--out", "out.safetensors"]
    placed = [str(folder / one) if "." in one or one == "adapter" else one for one in line]
    return CliRunner().invoke(app, [*placed, *more])


def test_the_command_takes_the_folder_and_ends_where_the_function_does(files):
    folder, base, model, memory = files
    done = repaired(folder, "base.pt", "adapter", "--amount", "3")
    assert done.exit_code == 0, done.output
    written = retain.models.weights.read_state(folder / "out.safetensors")
    expected = retain.repair(base, model, memory, amount=3).state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.allclose(written[n], expected[n], atol=1e-6) for n in expected)


def test_weights_and_adapters_side_by_side_are_refused_with_what_to_do(files):
    folder, base, model, memory = files
    for ask in (
        lambda: retain.repair(base, model.state_dict(), memory),
        lambda: memory.forecast(model.state_dict()),
    ):
        with pytest.raises(InputError, match=r"4 tensors of adapters.*Merge them first"):
            ask()
    torch.save(model.state_dict(), folder / "unmerged.pt")
    done = repaired(folder, "base.pt", "unmerged.pt")
    assert done.exit_code == 2
    assert "save_pretrained()" in done.output
    merged = copy.deepcopy(model).merge_and_unload()
    assert memory.forecast(model).change == pytest.approx(memory.forecast(merged).change)
    assert memory.forecast(model).change > 0


def test_a_folder_that_is_no_adapter_or_one_of_another_model(files):
    folder, *_ = files
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(FileError, match=r"a folder without adapter_config\.json"):
        merged_from({}, empty)
    with pytest.raises(FileError, match=r"they have no blocks\.0, blocks\.1"):
        merged_from({"other.weight": torch.zeros(2, 2)}, folder / "adapter")
    misshapen = {f"blocks.{i}.weight": torch.zeros(9, 9) for i in (0, 1)}
    with pytest.raises(FileError, match="cannot be merged"):
        merged_from(misshapen, folder / "adapter")
    config = folder / "adapter" / "adapter_config.json"
    config.write_text("{")
    with pytest.raises(FileError, match="cannot be read"):
        merged_from(Network().state_dict(), folder / "adapter")
    config.write_text(json.dumps({"peft_type": "WHAT"}))
    with pytest.raises(FileError, match="cannot be read"):
        merged_from(Network().state_dict(), folder / "adapter")
