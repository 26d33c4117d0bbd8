"""Passports: small, honest about it, and good for the very weights that they were made of."""

import copy
import json

import pytest
import torch
from torch import nn

import retain
from retain.errors import FileError, InputError
from retain.memory.compact import compacted, expanded


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def batches(n=6):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(8, 6, generator=generator) for _ in range(n)]


def test_rows_and_columns_keep_their_sums_and_products_exactly():
    rank_one = {"a": torch.outer(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 8.0]))}
    again = expanded(compacted(rank_one), {"a": (3, 2)})
    assert torch.allclose(again["a"], rank_one["a"], rtol=0.02)
    torch.manual_seed(0)
    any_ = {"c": torch.rand(4, 3, 2, 2), "b": torch.rand(5), "s": torch.tensor(2.0)}
    again = expanded(compacted(any_), {n: tuple(t.shape) for n, t in any_.items()})
    matrix, other = any_["c"].flatten(1), again["c"].flatten(1)
    assert torch.allclose(other.sum(1), matrix.sum(1), rtol=0.02)
    assert torch.allclose(other.sum(0), matrix.sum(0), rtol=0.02)
    assert torch.allclose(again["b"], any_["b"], rtol=0.01)
    assert again["s"] == 2.0
    zeros = {"z": torch.zeros(2, 3)}
    assert torch.equal(expanded(compacted(zeros), {"z": (2, 3)})["z"], zeros["z"])


def test_it_protects_without_data(model, tmp_path):
    made = retain.passport(model, batches(), name="Tiny <b>", described="noise")
    made.save(tmp_path / "tiny.safetensors")
    memory = retain.load(tmp_path / "tiny.safetensors", model)
    assert isinstance(memory, retain.MAS)
    assert memory.importance.samples == 48
    full = retain.MAS(model)
    full.observe(batches(), progress=False).consolidate()
    for name, omega in memory.importance.items():
        assert float(omega.sum()) == pytest.approx(float(full.importance[name].sum()), rel=0.02)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.strength = 10.0
    memory.attach(optimizer, form="proximal")
    before, other = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    free = torch.optim.SGD(other.parameters(), lr=0.1)
    for net, opt in ((model, optimizer), (other, free)):
        for x in batches():
            opt.zero_grad()
            net(x).sum().backward()
            opt.step()
    far = [memory.forecast(net).change for net in (model, other)]
    assert 0 < far[0] < 0.5 * far[1]
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])


def test_the_card_says_what_it_is_and_is_plain_data(model, tmp_path):
    made = retain.passport(model, batches(), name="Tiny <script>", described="noise")
    card = json.loads(json.dumps(made.card))
    assert card["samples"] == 48
    assert card["parameters"] == 6 * 16 + 16 + 16 * 4 + 4
    assert card["bytes"] == 2 * (16 + 6 + 16 + 4 + 16 + 4)
    assert 0 < card["stability"] <= 1
    assert 0 < card["fidelity"] <= 1
    assert sum(layer["share"] for layer in card["layers"]) == pytest.approx(1)
    made.save(tmp_path / "p.safetensors")
    again = retain.passports.Passport.load(tmp_path / "p.safetensors")
    assert str(again) == str(made)
    assert json.loads(made.write_card(tmp_path / "card.json").read_text("utf-8")) == card
    page = again.write_page(tmp_path / "card.html").read_text()
    assert "Tiny &lt;script&gt;" in page
    assert "<script>" not in page
    assert "0.weight" in page


def test_other_weights_and_other_models_are_refused(model, tmp_path):
    retain.passport(model, batches()).save(tmp_path / "p.safetensors")
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with pytest.raises(FileError, match=r"other weights: 1 of 4 differ, such as 0\.weight"):
        retain.load(tmp_path / "p.safetensors", model)
    with pytest.raises(FileError, match=r"another model; missing: 2\.weight, 2\.bias"):
        retain.load(tmp_path / "p.safetensors", nn.Sequential(nn.Linear(6, 16)))
    with pytest.raises(FileError, match="a passport, not an importance"):
        retain.Importance.load(tmp_path / "p.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "p.safetensors").read_bytes()[:-5])
    with pytest.raises(FileError):
        retain.passports.Passport.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_told_what_to_do(model, tmp_path, dtype):
    retain.passport(model, batches(), progress=False).save(tmp_path / "p.safetensors")
    said = f"are {str(dtype).removeprefix('torch.')}: load it in float32, and this"
    with pytest.raises(FileError, match=said):
        retain.load(tmp_path / "p.safetensors", copy.deepcopy(model).to(dtype))
    retain.load(tmp_path / "p.safetensors", copy.deepcopy(model).double())


def test_same_names_and_other_shapes_are_told_by_name(model, tmp_path):
    retain.passport(model, batches(), progress=False).save(tmp_path / "p.safetensors")
    wider = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    with pytest.raises(
        FileError, match=r"another model; misshapen: 0\.weight, 0\.bias, 2\.weight\."
    ):
        retain.load(tmp_path / "p.safetensors", wider)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 1000, -1])
def test_a_truncated_file_is_refused_wherever_it_ends(model, tmp_path, kept):
    retain.passport(model, batches(), progress=False).save(tmp_path / "p.safetensors")
    whole = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:kept])
    for read in (retain.passports.Passport.load, lambda path: retain.load(path, model)):
        with pytest.raises(FileError, match=r"cut\.safetensors cannot be read.*truncated"):
            read(tmp_path / "cut.safetensors")


@pytest.mark.filterwarnings("ignore:The importance of")
def test_a_passport_of_nothing_is_refused(model):
    with pytest.raises(InputError, match="depends on no weight of the model"):
        retain.passport(model, batches(), output=lambda y: y * 0, progress=False)
    with pytest.raises(InputError, match=r"two batches .*data\.split\(32\)"):
        retain.passport(model, torch.randn(16, 6), progress=False)


def test_names_may_break_behind_dots_and_are_whole_beside_it(model, tmp_path):
    made = retain.passport(model, batches(), progress=False)
    page = made.write_page(tmp_path / "card.html").read_text("utf-8")
    assert '<td title="0.weight">0.<wbr>weight</td>' in page


def test_it_finds_its_model_inside_of_another(model, tmp_path):
    retain.passport(model, batches()).save(tmp_path / "p.safetensors")
    inside = nn.ModuleDict({"body": model, "head": nn.Linear(4, 2)})
    memory = retain.load(tmp_path / "p.safetensors", inside)
    assert set(memory.importance) == {f"body.{n}" for n, _ in model.named_parameters()}
    assert memory.importance.routes["body.0.weight"] == "linear"


def test_what_the_output_does_not_depend_on_is_left_out(model):
    model.extra = nn.Linear(2, 2)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    made = retain.passport(model, batches())
    assert "extra.weight" not in made.importance


def test_two_batches_at_least_and_no_more_than_asked(model):
    with pytest.raises(InputError, match="two batches"):
        retain.passport(model, batches(1))
    assert retain.passport(model, batches(6), max_samples=20).card["samples"] == 24


def test_the_gradients_and_modes_are_as_before(model):
    model.train()
    retain.passport(model, batches())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["minilm", "efficientnet_lite0"])
def test_what_is_shipped_can_be_read(name):
    path = getattr(retain.passports, name)()
    card = retain.passports.Passport.load(path).card
    assert path.stat().st_size < 600_000
    assert card["stability"] > 0.5
    assert card["samples"] > 100


def test_odd_names_are_text_on_the_card_and_on_its_page(model, tmp_path):
    odd = "<script>hit()</script> caf\udce9 \u202eabc\x1b[2J"
    retain.passport(model, batches(), name=odd, described=odd, progress=False).save(
        tmp_path / "odd"
    )
    again = retain.passports.Passport.load(tmp_path / "odd")
    page = again.write_page(tmp_path / "odd.html").read_text(encoding="utf-8")
    assert page.count("caf\\udce9") == 4
    assert "<script" not in page
    assert "script-src" not in page  # none is allowed
    assert "default-src 'none'" in page
    for said in (str(again), page):
        assert said.encode()
        assert not {"\u202e", "\x1b"} & set(said)
