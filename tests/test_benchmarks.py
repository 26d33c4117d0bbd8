"""The benchmarks measure what they say: every way computes the same, and ratios are of pairs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "benchmarks"
MLP = "MLP 784-400-400-10, n = 256"
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


@pytest.mark.parametrize("way", ["vmap(grad)", "single-sample loop", "Opacus", "BackPACK"])
def test_the_others_compute_what_we_do(way, monkeypatch):
    ways, model = module("ways"), small()
    if way in ("Opacus", "BackPACK"):
        pytest.importorskip(way.lower())
    monkeypatch.setattr(ways, "HELD", (200, 300))  # so that they have to go in chunks
    memory = module("retain").MAS(model).observe([INPUTS], progress=False)
    theirs = ways.OTHERS[way](small_copy(model), INPUTS)()
    for name, ours in memory.observed.items():
        torch.testing.assert_close(theirs[name] / len(INPUTS), ours)


def test_squares_are_of_every_sample():
    ways, model = module("ways"), small()
    found = ways.OWN["Ω, power 2"](model, INPUTS)()
    for name, p in model.named_parameters():
        each = [torch.autograd.grad(model(x[None]).square().sum(), p)[0] ** 2 for x in INPUTS]
        torch.testing.assert_close(found[name], torch.stack(each).sum(0))


def test_a_way_that_leaves_out_a_parameter_is_no_result():
    ways = module("ways")
    with pytest.raises(NotImplementedError, match=r"no per-sample gradient for 0\.bias"):
        ways.given("0.bias", nn.Parameter(torch.ones(2)), "grad_sample")


def test_another_way_has_to_agree_with_ours():
    importance, model = module("importance"), small()
    ours = module("retain").MAS(model).observe([INPUTS], progress=False).observed
    sums = {name: mean * len(INPUTS) for name, mean in ours.items()}
    importance.agreeing(lambda: sums, ours)()
    wrong = {name: total * 1.1 for name, total in sums.items()}
    with pytest.raises(ValueError, match=r"differs from ours by"):
        importance.agreeing(lambda: wrong, ours)()


def small_copy(model):
    copy = small()
    copy.load_state_dict(model.state_dict())
    return copy


def test_chunks_are_complete():
    ways, batches = module("ways"), module("retain.samples.batches")
    parts = list(ways.chunks(batches.Batch.of(INPUTS), 2))
    assert [part.samples for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.args[0] for part in parts]), INPUTS)


def test_others_go_in_the_chunks_that_are_quickest_for_them(monkeypatch):
    ways, batches = module("ways"), module("retain.samples.batches")
    model, called, seconds = small(), [], iter([3.0, 1.0, 2.0])
    one = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(ways, "HELD", (one, 2 * one, 9 * one))
    monkeypatch.setattr(ways, "timed", lambda run: (run(), next(seconds))[1])
    run = ways.quickest(lambda size: called.append(size) or {}, model, batches.Batch.of(INPUTS))
    run()
    run()
    assert called == [1, 1, 2, 5, 2, 2]  # warming up, trying, and then the quickest


def test_ratios_are_inside_a_round():
    times = module("measure").Times({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 4.0]}, {})
    assert times.ratio("a", to="b") == 2.0
    assert times.milliseconds("b") == 4000.0


def test_a_slow_way_may_do_fewer_rounds(monkeypatch):
    measure, seconds = module("measure"), {"plain": 1.0, "ours": 9.0, "theirs": 9.0}
    monkeypatch.setattr(measure, "timed", lambda run: seconds[run()])
    ways = {name: lambda name=name: name for name in seconds}
    times = measure.interleaved(ways, rounds=7, patient=["theirs"])
    assert {name: len(took) for name, took in times.seconds.items()} == {
        "plain": 7,
        "ours": 7,
        "theirs": measure.FEW,
    }
    assert times.ratios("theirs", "plain") == [9.0] * measure.FEW


def test_what_takes_long_is_measured_in_few_rounds(monkeypatch):
    measure, now = module("measure"), [0.0]

    def timed(run):
        now[0] += 6.0
        return 6.0

    monkeypatch.setattr(measure, "timed", timed)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    times = measure.interleaved({"plain": None, "ours": None}, rounds=7)
    assert len(times.seconds["ours"]) == measure.FEW
    assert now[0] == 2 * (1 + measure.FEW) * 6.0  # one turn each to warm up


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


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
def test_the_plain_version_of_a_protected_step_ends_where_ours_does(form, monkeypatch):
    penalty = module("penalty")
    made = []

    def small_weights():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        model(torch.randn(4, 6)).square().mean().backward()
        made.append(model)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    monkeypatch.setattr(penalty, "small_weights", small_weights)
    monkeypatch.setattr(penalty, "STEPS", 1)
    penalty.by_foreach(form)()
    model, optimizer = small_weights()
    handle = penalty.remembered(model)
    optimizer.step()
    handle.attach(optimizer, form=form)
    optimizer.step()
    for plain, ours in zip(made[0].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(plain, ours)


def test_the_naive_penalty_is_the_penalty():
    penalty, model = module("penalty"), small()
    memory = penalty.remembered(model)
    ours, naive = (make(model, memory)() for make in penalty.SCALARS.values())
    torch.testing.assert_close(ours, naive)
    assert all(g.abs().max() > 0 for g in ours)


def row(measured, model="A, n = 2", work="Ω", **more):
    return module("records").Row(model, work, "plain", measured, **more)


def test_met_is_judged_at_the_decimals_that_are_shown():
    assert [row(x, target=1.05).met for x in (1.054, 1.056)] == [True, False]
    assert [row(x, target=4.0, at_least=True).met for x in (3.996, 3.9)] == [True, False]
    assert row(1.0).met is None
    assert row(None, target=1.0).met is None


def test_a_file_keeps_rows_and_replaces_what_is_measured_again(tmp_path, capsys):
    records, file = module("records"), tmp_path / "results" / "rows.json"
    records.keep([row(2.0), row(3.0, model="B")], file)
    records.keep([row(1.0), row(4.0, work="first"), row(5.0, at=2.0)], file)
    about, rows = records.read(file)
    assert about["threads"] == records.THREADS
    assert about["versions"]["torch"] == module("importlib.metadata").version("torch")
    assert [(r.model, r.work, r.measured) for r in rows] == [
        ("A, n = 2", "Ω", 1.0),
        ("B", "Ω", 3.0),
        ("A, n = 2", "first", 4.0),
        ("A, n = 2", "Ω", 5.0),
    ]
    other = json.loads(file.read_text()) | {"machine": "another"}
    file.write_text(json.dumps(other))
    records.keep([row(7.0)], file)
    assert "begun anew" in capsys.readouterr().err
    assert [r.measured for r in records.read(file)[1]] == [7.0]


def written_report(tmp_path, monkeypatch, rows):
    records, report = module("records"), module("report")
    for name, of_file in rows.items():
        records.keep(of_file, tmp_path / f"{name}.json")
    out = tmp_path / "docs" / "performance.md"
    (tmp_path / "limits.md").write_text("# None\n")
    options = {"--results": tmp_path, "--out": out, "--limits": tmp_path / "limits.md"}
    given = [str(word) for option in options.items() for word in option]
    monkeypatch.setattr(sys, "argv", ["report", *given])
    return report, out


def test_the_page_shows_met_and_missed_and_why_a_way_could_not_run(tmp_path, monkeypatch):
    report, out = written_report(
        tmp_path,
        monkeypatch,
        {
            "importance": [
                row(1.01, target=1.05, base=3.0),
                row(1.5, model="B, n = 3", target=1.1, base=2.0),
                row(None, MLP, work="BackPACK", reason="ValueError: no"),
                row(2.0, MLP, target=1.05, base=3.0),
                row(9.0, MLP, work="Opacus"),
                row(8.0, MLP, work="vmap(grad)"),
            ],
            "growth": [row(float(x), model="classes", work="exact", at=x) for x in (2, 4, 8)],
        },
    )
    with pytest.raises(SystemExit, match=r"does not say why: Ω, B, n = 3: 1\.50; Ω, MLP"):
        report.main()
    page = out.read_text(encoding="utf-8")
    assert "2 of 4 targets are met" in page
    assert f"| {MLP} | 8.00 |  | 9.00 | — | 4.00 ✓ | ≥ 4 |" in page
    assert "| A, n = 2 | 3.0 | 1.01 ✓ |" in page
    assert "**1.50** ✗" in page
    assert "BackPACK — MLP 784-400-400-10: `ValueError: no`" in page
    assert "∝ x^1.00" in page
    picture = (tmp_path / "docs" / "pictures" / "growth-classes.svg").read_text()
    assert "fill: #ffffff" in picture  # on pages of any colour


def test_a_missed_target_is_explained_by_the_section_about_it(tmp_path):
    report, file = module("report"), tmp_path / "limits.md"
    file.write_text("# Title\n\n## Ω* | A, n = *; C*\n\nSlow.\n\nVery.\n\n## x | *\n\nNo.\n")
    known = report.limits(file)
    assert [limit.text for limit in known] == ["Slow.\n\nVery.", "No."]
    rows = [row(2.0, target=1.0), row(2.0, model="B", target=1.0), row(0.5, "C", target=1.0)]
    used, alone = report.explained(rows, known)
    assert used == known[:1]
    assert [r.model for r in alone] == ["B"]
    assert report.heading(used[0], rows) == "Ω — A, n = 2: 2.00 (≤ 1)"


def test_a_piece_that_takes_too_long_is_cut_off():
    everything = module("everything")
    assert everything.run([sys.executable, "-c", ""], None)
    assert not everything.run([sys.executable, "-c", "raise SystemExit(1)"], 30)
    assert not everything.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.1)


def test_the_worst_are_those_furthest_from_their_targets(tmp_path, monkeypatch):
    everything, records = module("everything"), module("records")
    monkeypatch.setattr(everything, "RESULTS", tmp_path)
    rows = [
        records.Row("fine", "Ω", "plain", 1.0, target=1.1),
        records.Row("near", "Ω", "plain", 1.2, target=1.1),
        records.Row("far", "Ω", "plain", 4.0, target=2.0),
        records.Row("slow", "gain", "vmap", 1.0, target=4.0, at_least=True),
    ]
    records.keep(rows, tmp_path / "importance.json")
    told = everything.worst("2026-01-01")
    assert [one.rpartition(", ")[2] for one in told] == ["slow", "far", "near"]
    assert everything.worst("9999-01-01") == []


def test_everything_is_measured_into_a_file_that_the_page_reads():
    everything, report = module("everything"), module("report")
    scripts = {script for script, *_ in everything.pieces().values()}
    assert {script.removesuffix(".py") for script in scripts} == set(report.NAMES)
    piece = everything.command("growth.py", ["--only", "tasks"], "nice -n 5")
    assert piece[:3] == ["nice", "-n", "5"]
    assert piece[-1] == str(FOLDER / "results" / "growth.json")


SMALLEST = {
    "importance.py": ["--only", "mlp", "--rounds", "1"],
    "local.py": ["--only", "mlp", "--rounds", "1"],
    "penalty.py": ["--only", "resnet", "--rounds", "1"],
    "growth.py": ["--only", "classes", "--rounds", "1"],
    "startup.py": ["--rounds", "1"],
    "run.py": ["--epochs", "1", "--rounds", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALLEST)
def test_a_table_is_printed_and_written(script, tmp_path):
    if script == "run.py" and not Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("needs Fashion-MNIST")
    out = tmp_path / "rows.json"
    command = [sys.executable, FOLDER / script, *SMALLEST[script], "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, rows = module("records").read(out)
    assert rows
    assert all(r.measured is not None or r.reason for r in rows)
    assert all(r.work[:12] in done.stdout for r in rows)  # the table may fold the rest


def test_the_guide_has_the_tables_of_scale():
    pytest.importorskip("transformers")
    scale = module("scale")
    page = (FOLDER.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    for table in scale.tables().split("\n\n"):
        assert table in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scale", "agreement"])
def test_what_two_processes_print_stands_in_the_guide(name):
    pytest.importorskip("peft")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    more = ["--measure"] if name == "scale" else []
    done = subprocess.run(
        [sys.executable, *command, "--rdzv-endpoint", "127.0.0.1:0", FOLDER / f"{name}.py", *more],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = FOLDER.parent / "docs" / ("scale.md" if name == "scale" else "trainers.md")
    text, rows = page.read_text(encoding="utf-8"), 0
    for line in done.stdout.splitlines():
        if not line.startswith("| ") or "measured" in line or "relative" in line:
            continue
        (what, *found), rows = [cell.strip() for cell in line.strip("| ").split(" | ")], rows + 1
        shown = next(one for one in text.splitlines() if one.startswith(f"| {what} |"))
        for ours, theirs in zip(map(float, found), shown.strip("| ").split(" | ")[1:]):
            slack = 0.1 if name == "scale" else 9 * float(theirs) + 1e-7
            assert abs(ours - float(theirs)) <= slack, line
    assert rows >= 5
