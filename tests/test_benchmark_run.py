"""The benchmark of a whole run compares like with like, and writes what it found."""

import gzip
import importlib
import json
import struct
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
EPOCHS = 2


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    module = importlib.import_module("run")
    monkeypatch.setattr(module, "BATCH", 4)
    yield module
    torch.set_num_threads(threads)
    sys.modules.pop("run", None)


def idx(numbers):
    header = bytes([0, 0, 8, numbers.ndim]) + struct.pack(f">{numbers.ndim}I", *numbers.shape)
    return gzip.compress(header + numbers.to(torch.uint8).numpy().tobytes())


@pytest.fixture
def data(tmp_path):
    """Five images of each of ten classes, in the four files of Fashion-MNIST."""
    labels = torch.arange(10).repeat(5)
    images = (labels * 20).view(-1, 1, 1).expand(-1, 6, 6) + torch.arange(6)
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
    return tmp_path


@pytest.fixture
def steps(monkeypatch):
    """The number of samples behind every step of Adam, counted where the loss is computed."""
    found = []
    real = torch.nn.functional.cross_entropy

    def counted(scores, labels, *args, **kwargs):
        found.append(len(labels))
        return real(scores, labels, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", counted)
    return found


def test_all_ways_take_the_same_steps_on_the_same_amount_of_data(bench, data, steps, monkeypatch):
    monkeypatch.setattr(bench, "cross_entropy", torch.nn.functional.cross_entropy)
    counts = {}
    for name, way in bench.ways(data, EPOCHS, []).items():
        steps.clear()
        assert len(way()) == bench.TASKS
        counts[name] = list(steps)
    expected = [4, 4, 2] * EPOCHS * bench.TASKS  # ten samples of a task in batches of four
    assert counts == dict.fromkeys(counts, expected)
    assert len(counts) == 4


def test_the_same_inputs(bench, data):
    from retain.tasks import load_tasks

    tasks = load_tasks(f"fashion-mnist={data}").tasks
    for part, name in (("train", "train"), ("t10k", "test")):
        for (inputs, labels), task in zip(bench.split(data, part), tasks, strict=True):
            batch = next(getattr(task, name).batches(100))
            assert torch.equal(batch.inputs.flatten(1), inputs)
            assert torch.equal(batch.labels, labels)


def test_a_row_for_each_way(bench, data, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    given = ["run.py", "--data", str(data), "--rounds", "2", "--epochs", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", given)
    bench.main()
    rows = json.loads(file.read_text())["rows"]
    assert [row["work"] for row in rows][:2] == ["a whole mas run", "a whole finetune run"]
    assert rows[0]["target"] == 1.2
    assert all(row["measured"] > 0 and row["rounds"] == 2 for row in rows)
    assert "final accuracy" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="Nothing is called"):
        bench.ways(data, 1, ["nothing"])
