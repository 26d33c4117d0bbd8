"""The benchmarks measure what they say: every way computes the same, and ratios are of pairs."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "benchmarks"
INPUTS = torch.randn(5, 4)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def module(name):
    return importlib.import_module(name)


def small():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).eval()


@pytest.mark.parametrize("way", ["vmap", "loop", "opacus", "backpack"])
def test_the_others_compute_what_we_do(way, monkeypatch):
    ways, model = module("ways"), small()
    if way in ("opacus", "backpack"):
        pytest.importorskip(way)
    monkeypatch.setattr(ways, "HELD", 200)  # so that they have to go in chunks
    memory = module("retain").MAS(model).observe([INPUTS], progress=False)
    theirs = ways.OTHERS[way](small_copy(model), INPUTS)()
    for name, ours in memory.observed.items():
        torch.testing.assert_close(theirs[name] / len(INPUTS), ours)


def small_copy(model):
    copy = small()
    copy.load_state_dict(model.state_dict())
    return copy


def test_chunks_are_bounded_and_complete(monkeypatch):
    ways, batches = module("ways"), module("retain.batches")
    monkeypatch.setattr(ways, "HELD", 2 * 4 * sum(p.numel() for p in small().parameters()))
    parts = list(ways.chunks(small(), batches.Batch.of(INPUTS)))
    assert [part.samples for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.args[0] for part in parts]), INPUTS)


def test_ratios_are_inside_a_round():
    times = module("measure").Times({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 4.0]}, {})
    assert times.ratio("a", to="b") == 2.0
    assert times.milliseconds("b") == 4000.0


def test_ways_take_turns_and_a_failure_is_a_result():
    order = []

    def fails():
        raise NotImplementedError("no rule for Fold. And more")

    ways = {"a": lambda: order.append("a"), "bad": fails, "b": lambda: order.append("b")}
    times = module("measure").interleaved(ways, rounds=3, warm_up=1)
    assert order == ["a", "b"] + ["a", "b"] * 3
    assert times.failed == {"bad": "NotImplementedError: no rule for Fold"}
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == {"a": 3, "b": 3}


def test_peak_memory_is_of_the_process_alone():
    measure = module("measure")
    held = torch.ones(40_000_000)  # of this process, not of the fresh one
    program = f"import sys; sys.path.insert(0, {str(FOLDER)!r})\nimport measure\n"
    program += "x = bytearray(50_000_000)\nprint(measure.peak_bytes())"
    script = ["-c", program]
    peak = int(subprocess.check_output([sys.executable, *script]).split()[-1])
    assert 50_000_000 < peak < measure.peak_bytes()
    assert held.sum() > 0
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        measure.peak_in_fresh_process("-c", ["1 / 0"])


def test_cases_are_found_by_name():
    cases = module("cases")
    assert cases.chosen([], every=False)[0].name.startswith("MLP")
    assert len(cases.chosen([], every=True)) == len(cases.CASES)
    assert {case.name for case in cases.chosen(["gpt"], every=False)} == {
        "GPT-2 6×384, tied",
        "GPT-2 6×384, untied",
    }
    with pytest.raises(SystemExit, match=r"No case is called \['vgg'\]. Known: MLP"):
        cases.chosen(["vgg"], every=False)


def test_the_naive_penalty_is_the_penalty():
    penalty, model = module("penalty"), small()
    memory = penalty.remembered(model)
    ours, naive = (make(model, memory)() for make in penalty.SCALARS.values())
    torch.testing.assert_close(ours, naive)
    assert all(g.abs().max() > 0 for g in ours)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["importance.py", "local.py"])
def test_a_table_is_printed_and_written(script, tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, FOLDER / script, "--only", "mlp", "--rounds", "1", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "MLP 784-400-400-10" in done.stdout
    (row,) = json.loads(out.read_text())["rows"]
    assert row["plain_ms"] > 0
    assert dataclasses.is_dataclass(module("importance").Row)
