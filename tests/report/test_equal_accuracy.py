"""The sentences of a comparison, each computed once more from results.json by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from retain.experiment import Config, run
from retain.experiment.sweep import swept
from retain.methods import METHODS
from retain.report import summary, write
from retain.report.figures.pareto_front import frontier
from retain.report.tables.equal_accuracy import compared, conclusion, sentences
from retain.report.variants import read

TITLES = {kind.title: name for name, kind in METHODS.items()}


def by_hand(results: dict[str, Any]) -> dict[tuple[str, float | None], dict[str, Any]]:
    """(method, value of its knob) -> forgetting and new-task accuracy: lists over the seeds."""
    found: dict[tuple[str, float | None], dict[str, Any]] = {}
    for record in results["runs"]:
        if record["status"] != "done":
            continue
        a = record["accuracy"]
        last = len(a) - 1
        new = sum(a[i][i] for i in range(1, last + 1)) / last
        best = [max(a[i][j] for i in range(j, last)) for j in range(last)]
        lost = sum(best[j] - a[last][j] for j in range(last)) / last
        value = record.get("knob")
        value = record.get("strength") if value is None else value
        own = found.setdefault((record["method"], value), {"new": [], "lost": []})
        own["new"].append(100 * new)
        own["lost"].append(100 * lost)
    return found


def told(values: list[float]) -> str:
    mean = f"{round(fmean(values), 1) + 0.0:.1f}".replace("-", "−")
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.1f}"


def expected(results: dict[str, Any]) -> dict[str, str]:
    """Method -> what its sentence has to say, from the file alone."""
    found = by_hand(results)
    free = found["finetune", None]
    wanted = fmean(free["new"]) - 1
    said = {"finetune": f"{told(free['lost'])} at {fmean(free['new']):.1f}"}
    for method in dict.fromkeys(name for name, _ in found if name != "finetune"):
        own = {value: both for (name, value), both in found.items() if name == method}
        there = {v: both for v, both in own.items() if fmean(both["new"]) > wanted - 1e-6}
        if there:
            least = min(round(fmean(both["lost"]), 6) for both in there.values())
            ties = [v for v, both in there.items() if round(fmean(both["lost"]), 6) == least]
            chosen = max(ties, key=lambda v: fmean(there[v]["new"]))
            said[method] = f"{told(there[chosen]['lost'])} with {chosen}"
        else:
            near = max(own.values(), key=lambda both: fmean(both["new"]))
            said[method] = f"no: {fmean(near['new']):.1f}, {told(near['lost'])}"
    return said


NUMBER = r"(−?\d+\.\d(?: ± \d+\.\d)?)"


def as_told(text: str) -> dict[str, str]:
    """The same, read off the sentences."""
    first, rest = text.split("At that accuracy minus 1 point:")
    begun = re.fullmatch(
        rf"FineTune forgets {NUMBER} points and reaches (\d+\.\d) % on new tasks\. ", first
    )
    assert begun, first
    said = {"finetune": f"{begun[1]} at {begun[2]}"}
    for sentence in re.split(r"(?<=\d)\. ", rest.strip().removesuffix(".")):
        gets = re.fullmatch(rf"(.+?)(?: \((\S+) = (\S+?)\))? forgets {NUMBER}", sentence)
        never = re.fullmatch(
            rf"(.+?)(?: \(.*\))? (?:never gets|does not get) there: (\d+\.\d) %"
            rf"(?: at best)?, forgetting {NUMBER}",
            sentence,
        )
        assert gets or never, sentence
        if never:
            said[TITLES[never[1]]] = f"no: {never[2]}, {never[3]}"
        elif share := re.fullmatch(r"replay of (\S+) %", gets[1]):
            said["replay"] = f"{gets[4]} with {float(share[1]) / 100}"
        else:
            value = None if gets[3] is None else float(gets[3])
            said[TITLES[gets[1]]] = f"{gets[4]} with {value}"
    return said


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_every_figure_of_every_sentence_of_a_run(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    asked = Config(
        "digits",
        methods=("joint", "mas", "low-lr", "replay", "wise-ft", "model-soup"),
        seeds=seeds,
        strengths={"mas": (0.01, 1, 1e6)},
        sweeps={"low-lr": (0.01, 0.6), "replay": (0.1, 0.5), "wise-ft": (0.1, 0.95)},
        classes_per_task=4,
        samples_per_class=16,
        epochs=2,
        batch_size=8,
        device="cpu",
    )
    results = run(swept(asked), out=tmp_path, progress=False)
    write(results, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text("utf-8"))
    text = sentences(read(tmp_path).sequences[0])
    assert as_told(text) == expected(content)
    assert any(said.startswith("no:") for said in expected(content).values())
    for name, both in by_hand(content).items():  # and what the file says itself
        own = [
            r
            for r in content["runs"]
            if (r["method"], r.get("knob") if r.get("strength") is None else r["strength"]) == name
        ]
        assert [100 * r["average_forgetting"] for r in own] == pytest.approx(both["lost"])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert text.replace("'", "&#39;") in page


def made(
    values: dict[str, list[tuple[float, ...]]], *, seeds: int = 1, **config: Any
) -> dict[str, Any]:
    """(forgetting, accuracy on the new task) of each method's values 1, 2, …, for each seed."""
    runs, strengths = [], {}
    for method, each in values.items():
        several = len(each) > 1
        for place, (lost, new) in enumerate(each):
            for seed in range(seeds):
                accuracy = [[0.9, None], [0.9 - lost, new]]
                record = {"method": method, "seed": seed, "tasks": ["a", "b"], "status": "done"}
                record |= {"strength": float(place + 1) if several else None, "accuracy": accuracy}
                record |= {"average_forgetting": 0.9 - accuracy[1][0]}
                record |= {"average_accuracy": (accuracy[1][0] + new) / 2}
                runs.append(record)
        if several:
            strengths[method] = [float(place + 1) for place in range(len(each))]
    config = {"methods": list(values), "strengths": strengths, "comparison": True, **config}
    return {"schema": 1, "versions": {}, "config": config, "runs": runs}


def first(results: dict[str, Any]) -> Any:
    return read(results).sequences[0]


@pytest.mark.parametrize("free", [place / 100 for place in range(50, 100)])
def test_exactly_one_point_below_is_still_there_whatever_rounding_does(free: float) -> None:
    exactly, less = round(free - 0.01, 2), round(free - 0.0101, 4)
    results = made({"finetune": [(0.2, free)], "mas": [(0.1, exactly), (0.05, less)]})
    assert "MAS (λ = 1) forgets 10.0." in sentences(first(results))
    assert as_told(sentences(first(results))) == expected(results)


def test_of_values_that_forget_alike_the_one_that_learns_more_is_named() -> None:
    for learned in ((0.9, 0.92), (0.92, 0.9)):
        results = made({"finetune": [(0.2, 0.9)], "mas": [(0.1, new) for new in learned]})
        assert as_told(sentences(first(results))) == expected(results)
        assert f"MAS (λ = {1 + (learned[1] > learned[0])})" in sentences(first(results))


def test_methods_that_tie_are_all_named_and_none_is_ahead_by_less_than_is_shown() -> None:
    both = {"mas": [(0.1, 0.9), (0.0, 0.5)], "kl": [(0.10004, 0.9), (0.0, 0.5)]}
    assert conclusion(first(made({"finetune": [(0.2, 0.9)], **both}))) == (
        "MAS (λ = 1) and KL (λ = 1) forget least at the new-task accuracy of FineTune minus 1 "
        "point: 10.0 and 10.0 points; FineTune 20.0."
    )
    as_much = made({"finetune": [(0.2, 0.9)], "mas": [(0.19996, 0.9), (0.1, 0.1)]})
    assert conclusion(first(as_much)).startswith("No method forgets less than FineTune (20.0")


def test_equal_points_do_not_beat_each_other_by_their_last_bit() -> None:
    # 0.9 − 0.8 and 0.8 − 0.7 differ by 1e-16
    results = made({"finetune": [(0.2, 0.9)], "mas": [(0.1, 0.9), (0.3, 0.9)], "kl": [(0.1, 0.9)]})
    kl = results["runs"][-1]
    kl["accuracy"], kl["average_accuracy"] = [[0.8, None], [0.7, 0.9]], (0.7 + 0.9) / 2
    kl["average_forgetting"] = 0.8 - 0.7
    assert results["runs"][1]["average_forgetting"] != kl["average_forgetting"]
    rows = {row[0].text: row for row in compared(first(results)).rows}
    assert [rows[name][5].text for name in ("MAS", "KL")] == ["1", "1"]


def test_a_mean_over_fewer_seeds_says_so() -> None:
    results = made(
        {"finetune": [(0.2, 0.9)], "mas": [(0.1, 0.9), (0.0, 0.5)], "kl": [(0.0, 0.1), (0.0, 0.2)]},
        seeds=2,
    )
    failed = results["runs"][3]
    assert (failed["method"], failed["seed"], failed["strength"]) == ("mas", 1, 1.0)
    failed.update(status="failed", error="made to fail", average_forgetting=None)
    said = sentences(first(results))
    assert "MAS (λ = 1, 1 of 2 seeds) forgets 10.0." in said
    assert "KL never gets there: 20.0 % at best" in said
    grid = compared(first(results))
    assert grid.columns[-1] == "Seeds"
    assert {row[0].text: row[-1].text for row in grid.rows}["MAS"] == "1 of 2"
    assert "1 of 2 seeds" in conclusion(first(results))


def test_what_did_not_finish_is_not_passed_over() -> None:
    results = made(
        {"finetune": [(0.2, 0.9)], "joint": [(0.0, 0.9)], "mas": [(0.1, 0.8), (0.0, 0.5)]}
    )
    for record in (results["runs"][1], results["runs"][3]):
        record.update(status="failed", error="made to fail", average_forgetting=None)
    said = sentences(first(results))
    assert said.endswith("Joint did not finish. 1 of 2 values of MAS did not finish.")
    for record in results["runs"][2:]:
        record.update(status="running", average_forgetting=None)
    said = sentences(first(results))
    assert said.startswith("No other method has finished")
    assert said.endswith("Joint did not finish. MAS did not finish.")


def test_forms_and_data_of_importance_are_curves_of_their_own() -> None:
    results = made({"finetune": [(0.2, 0.9)], "mas": [(0.1, 0.9), (0.0, 0.5)]})
    again = [dict(record, form="proximal") for record in results["runs"][1:]]
    for record in results["runs"][1:]:
        record["form"] = "gradient"
    again[0].update(accuracy=[[0.9, None], [0.85, 0.9]], average_forgetting=0.9 - 0.85)
    again[0]["average_accuracy"] = 0.875
    results["runs"] += again
    said = sentences(first(results))
    assert "MAS, gradient (λ = 1) forgets 10.0." in said
    assert "MAS, proximal (λ = 1) forgets 5.0." in said


# ---- where no method has two values ----


def test_methods_without_a_knob_are_set_side_by_side_and_it_is_said_why(tmp_path: Path) -> None:
    results = made(
        {"finetune": [(0.2, 0.9)], "joint": [(0.0, 0.95)], "model-soup": [(0.3, 0.8)]}, seeds=2
    )
    said = sentences(first(results))
    assert "No method here has two values of a knob (Joint and Model soup: no knob)" in said
    assert "--strength mas=0.1:1" in said
    assert "Model soup forgets 30.0 ± 0.0 points and reaches 80.0 ± 0.0 % on new tasks" in said
    assert "FineTune by Joint; Model soup by FineTune and Joint." in said
    assert "Within 1 point of FineTune on new tasks, or above it: Joint forgets 0.0 ± 0.0." in said
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in compared(first(results)).rows}
    assert rows["Model soup"] == ["nothing", "–", "30.0 ± 0.0", "80.0 ± 0.0", "FineTune and Joint"]
    assert rows["Joint"][-1] == "none"
    assert summary(results) == (
        "Joint training aside, FineTune beats all others: it forgets 20.0 ± 0.0 points and reaches "
        "90.0 ± 0.0 % on new tasks."
    )
    write(results, tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert ">What is forgotten, and what is learned</h2>" in page
    assert "equal accuracy on new tasks</h2>" not in page
    assert (tmp_path / "figures" / "frontier.svg").exists()


def test_a_chosen_strength_alone_is_no_comparison_either() -> None:
    results = made({"finetune": [(0.2, 0.9)], "mas": [(0.1, 0.85)]})
    results["runs"][1] |= {"strength": 3.0, "strength_search": [{"task": "b", "strength": 3.0}]}
    assert "(MAS: λ = auto alone)" in sentences(first(results))
    assert summary(results) == (
        "The choice is between FineTune (forgets 20.0 points and reaches 90.0 % on new tasks) and "
        "MAS (λ = auto) (forgets 10.0 points and reaches 85.0 % on new tasks)."
    )


def test_without_finetune_each_is_told_as_it_is_and_many_only_by_their_front() -> None:
    results = made({"mas": [(0.2 - k / 100, 0.9 - k / 100) for k in range(10)] * 2})
    said = sentences(first(results))
    assert said.startswith("FineTune has not finished")
    assert said.count(" forgets ") == 20  # equal ones do not beat each other
    results = made({"mas": [(0.2, 0.9), *[(0.3, 0.8)] * 20]})
    said = sentences(first(results))
    assert said.count(" forgets ") == 1
    assert said.endswith("Each of the other values and methods is beaten by one of these.")
    assert "more than 25 points below" not in frontier(first(results), "")[0].caption


def test_finetune_alone_and_nothing_at_all(tmp_path: Path) -> None:
    assert "nothing to compare FineTune with" in sentences(first(made({"finetune": [(0.2, 0.9)]})))
    results = made({"finetune": [(0.2, 0.9)], "mas": [(0.2, 0.9), (0.1, 0.1)]})
    for record in results["runs"]:
        record.update(status="failed", error="made to fail", accuracy=[], average_forgetting=None)
    assert (sentences(first(results)), compared(first(results))) == ("", None)
    write(results, tmp_path)
    assert summary(results).startswith("No run finished")
