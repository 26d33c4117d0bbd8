"""Importance: a mapping that can be added, pooled, kept, and looked at."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import retain
from retain import Importance, files
from retain.errors import FileError, InputError
from retain.importance import is_positive
from retain.memory.memory_file import read_importance


def some(samples, seed=0, names=("a.weight", "a.bias")):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (3, 2), "bias": (3,)}
    means = {n: torch.rand(shapes[n.split(".")[-1]], generator=generator) for n in names}
    return Importance(means, samples, dict.fromkeys(names, "linear"))


def test_it_is_a_mapping():
    importance = some(5)
    assert list(importance) == ["a.weight", "a.bias"]
    assert importance["a.weight"].shape == (3, 2)
    assert len(importance) == 2
    assert "a.bias" in importance
    assert repr(importance) == "Importance(2 parameters, 9 weights, 5 samples)"


def test_pooling_is_weighted_by_samples():
    a, b, c = some(10, 1), some(30, 2), some(60, 3)
    pooled = Importance.pool([a, b, c])
    assert pooled.samples == 100
    for name in pooled:
        expected = 0.1 * a[name] + 0.3 * b[name] + 0.6 * c[name]
        torch.testing.assert_close(pooled[name], expected)
    assert pooled.routes == a.routes


def test_pooling_shards_is_observing_the_whole():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    data = torch.randn(40, 4)
    whole = retain.MAS(model).observe(data).observed
    shards = [retain.MAS(model).observe(part).observed for part in data.split([3, 30, 7])]
    pooled = Importance.pool(shards)
    assert pooled.samples == 40
    for name in whole:
        torch.testing.assert_close(pooled[name], whole[name])


def test_what_cannot_be_pooled():
    with pytest.raises(InputError, match="got nothing"):
        Importance.pool([])
    with pytest.raises(InputError, match="got dict"):
        Importance.pool([some(1), {}])
    with pytest.raises(InputError, match=r"some lack: b\.weight"):
        Importance.pool([some(1), some(1, names=("a.weight", "a.bias", "b.weight"))])
    with pytest.raises(InputError, match=r"shapes differ: a\.weight \(\(2,\) and \(3, 2\)\)"):
        Importance.pool([some(1), Importance({**some(1), "a.weight": torch.ones(2)}, 1)])
    with pytest.raises(InputError, match="no samples"):
        Importance.pool([some(0), some(0)])


def test_adding_is_over_tasks_and_a_later_head_keeps_its_own():
    a, b = some(10, 1), some(30, 2, names=("a.weight", "a.bias", "b.weight"))
    total = a + b
    assert total.samples == 40
    torch.testing.assert_close(total["a.weight"], a["a.weight"] + b["a.weight"])
    torch.testing.assert_close(total["b.weight"], b["b.weight"])
    assert list(a) == ["a.weight", "a.bias"]
    with pytest.raises(InputError, match="shapes differ"):
        a + Importance({"a.weight": torch.ones(2)}, 1)
    with pytest.raises(TypeError):
        a + 1


def test_it_can_be_kept(tmp_path):
    path = tmp_path / "omega.safetensors"
    importance = some(7)
    importance.save(path)
    again = Importance.load(path)
    assert again.samples == 7
    assert again.routes == importance.routes
    assert list(again) == list(importance)
    assert all(torch.equal(again[name], importance[name]) for name in importance)


def test_a_memory_is_not_an_importance(tmp_path):
    path = tmp_path / "m.safetensors"
    retain.MAS(nn.Linear(2, 2)).save(path)
    with pytest.raises(FileError, match=r"holds a memory.*retain\.load"):
        Importance.load(path)


def test_the_summary_has_a_row_per_parameter():
    importance = Importance(
        {"a.weight": torch.tensor([[1.0, 3.0]]), "a.bias": torch.tensor(4.0)},
        1234,
        {"a.bias": "loop"},
    )
    weight, bias = importance.summary().rows
    assert (weight.name, weight.shape, weight.mean, weight.share, weight.largest, weight.route) == (
        "a.weight", (1, 2), 2.0, 0.5, 3.0, "",
    )  # fmt: skip
    assert (bias.shape, bias.mean, bias.share, bias.route) == ((), 4.0, 0.5, "loop")
    for text in (str(importance.summary()), repr(importance.summary())):
        assert "1,234 samples" in text
        assert "1×2" in text
        assert "50.0 %" in text
    console = Console(file=io.StringIO(), width=100)
    console.print(importance.summary())
    assert "a.weight" in console.file.getvalue()


def test_an_empty_summary_is_no_error():
    assert "0 samples" in str(Importance({}, 0).summary())


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"omega.{suffix}"
    assert some(3).plot(path) == path
    assert path.stat().st_size > 2000


def test_a_picture_of_many_layers_says_which(tmp_path):
    pytest.importorskip("matplotlib")
    names = [f"layer{i}.{kind}" for i in range(70) for kind in ("weight", "bias")]
    path = tmp_path / "omega.svg"
    some(3, names=names).plot(path)
    assert path.stat().st_size > 2000


def test_what_cannot_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="no importance to draw"):
        Importance({}, 0).plot(tmp_path / "x.png")
    with pytest.raises(InputError, match="Cannot draw"):
        some(3).plot(tmp_path / "x.docx")


ODD = {
    "a number": 3.0,
    "nothing": None,
    "whole numbers": torch.ones(2, dtype=torch.int32),
    "complex": torch.ones(2, dtype=torch.complex64),
    "eight bits of another kind": torch.ones(2).to(torch.float8_e4m3fn),
    "sparse": torch.eye(2).to_sparse(),
    "no numbers": torch.empty(2, device="meta"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_importance_is_refused_when_it_is_made(what):
    with pytest.raises(InputError, match=r"'layer' is .*; expected dense tensors"):
        Importance({"layer": ODD[what]}, 3)


@pytest.mark.parametrize("samples", [-1, 1.5, float("nan"), None, "3", True, 10**400])
def test_samples_are_a_whole_number(samples):
    with pytest.raises(InputError, match="samples="):
        Importance({"layer": torch.ones(2)}, samples)


@pytest.mark.parametrize("name", [3, None, b"a"])
def test_names_are_text(name):
    with pytest.raises(InputError, match="the name"):
        Importance({name: torch.ones(2)}, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_could_not_be_loaded_is_not_saved(value, tmp_path):
    with pytest.raises(InputError, match=r"No importance to save: layer has"):
        Importance({"layer": torch.tensor([1.0, value])}, 3).save(tmp_path / "omega.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_utf8_is_refused_by_files(tmp_path):
    with pytest.raises(InputError, match=r"No file can name the tensor 'caf\\udce9'"):
        Importance({"caf\udce9": torch.ones(2)}, 3).save(tmp_path / "omega.safetensors")


def test_a_file_of_another_type_is_refused_with_its_type(tmp_path):
    path = tmp_path / "omega.safetensors"
    header = {"samples": 3, "routes": {}, "names": ["layer"]}
    files.write(path, "importance", {"layer": torch.ones(2).to(torch.float8_e4m3fn)}, header)
    with pytest.raises(FileError, match="layer is float8_e4m3fn"):
        Importance.load(path)


def test_a_damaged_memory_is_said_to_be_damaged_by_whoever_looks_at_it(tmp_path):
    path = tmp_path / "memory.safetensors"
    memory = retain.MAS(nn.Linear(3, 2)).observe(torch.randn(4, 3), progress=False).consolidate()
    memory.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match="is damaged: its digest"):
        read_importance(path)


def test_norms_are_weighed_as_importance_is():
    parts = [
        Importance({"w": torch.ones(2)}, n, squared_norm=norm) for n, norm in ((1, 8.0), (3, 4.0))
    ]
    assert Importance.pool(parts).squared_norm == 5.0
    assert (parts[0] + parts[1]).squared_norm == 12.0


def test_a_norm_that_is_not_known_is_not_made_up():
    """Unless the part that lacks it has no samples, and so no weight."""
    known = Importance({"w": torch.ones(2)}, 3, squared_norm=4.0)
    lacking = [Importance({"w": torch.ones(2)}, n) for n in (3, 0)]
    assert Importance.pool([known, lacking[0]]).squared_norm is None
    assert (known + lacking[0]).squared_norm is None
    assert Importance.pool([known, lacking[1]]).squared_norm == 4.0


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"samples": -1, "routes": {}, "names": ["w"]}, "samples"),
        ({"samples": 3, "routes": {}, "names": ["w", "v"]}, "it names 2 tensors and holds 1"),
        ({"routes": {}, "names": ["w"]}, "samples"),
    ],
)
def test_a_header_that_does_not_fit_is_a_damaged_file(header, said, tmp_path):
    path = tmp_path / "omega.safetensors"
    files.write(path, "importance", {"w": torch.ones(2)}, header)
    with pytest.raises(FileError, match=rf"damaged header: .*{said}"):
        Importance.load(path)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float16, torch.float64])
def test_numbers_of_any_width_are_compared_with_zero(dtype):
    assert is_positive(torch.tensor([0.0, 1.0]).to(dtype))
    assert not is_positive(torch.tensor([0.0, -1.0]).to(dtype))


def test_a_negative_number_too_small_for_single_precision_is_negative():
    assert not is_positive(torch.tensor([1.0, -1e-300], dtype=torch.float64))
