"""Which form of the penalty? MAS on split Fashion-MNIST over eight decades of λ, SGD and Adam.

    python experiments/forms.py --data /usr/share/datasets/fashion-mnist --out forms --docs docs

Writes docs/pictures/forms.svg, and the table into docs/forms.md, between two marks. A run that was
interrupted is taken up again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import matplotlib.pyplot as plt

from retain.experiment import Config, Results, Run, run

STRENGTHS = tuple(10.0**power for power in range(-2, 7))
FORMS = ("gradient", "proximal", "adaptive")
RATES = {"sgd": 0.01, "adam": 1e-3}
NAMES = {"sgd": "SGD", "adam": "Adam"}
Sweeps = dict[str, list[Results]]  # by optimizer, a result per seed
BEGIN, END = "<!-- measured: python experiments/forms.py -->", "<!-- end -->"
MEASURED = """
Seeds: {seeds}.

![Average accuracy over strength: SGD and Adam, three forms](pictures/forms.svg){{ .wide }}

Average accuracy / average forgetting in percent:

{table}
"""
STYLE = {
    "gradient": {"color": "#D55E00", "marker": "s", "markersize": 9, "markerfacecolor": "none"},
    "proximal": {"color": "#0072B2", "marker": "o"},
    "adaptive": {"color": "#009E73", "marker": "D", "markersize": 4},
}


def config(optimizer: str, data: str, seed: int) -> Config:
    """Five tasks of two classes, 784-400-400, four epochs, batches of 128."""
    return Config(
        tasks=f"fashion-mnist={data}",
        model="mlp",
        methods=("finetune", "mas"),
        strengths={"mas": STRENGTHS},
        forms=FORMS,
        seeds=(seed,),
        epochs=4,
        batch_size=128,
        optimizer=optimizer,
        lr=RATES[optimizer],
        title=f"Forms of the penalty, {NAMES[optimizer]}",
    )


def results(optimizer: str, data: str, out: Path, seed: int) -> Results:
    """The sweep with one optimizer and seed, made or gone on with in a folder of its own."""
    folder = out / f"{optimizer}-seed{seed}"
    asked = config(optimizer, data, seed)
    return run(asked, out=folder, resume=(folder / "results.json").exists())


def found(of: list[Results], form: str | None, strength: float | None) -> list[Run]:
    """The runs with that form and λ, a run per seed."""
    return [r for one in of for r in one.runs if (r.form, r.strength) == (form, strength)]


def mean(records: list[Run], measure: str) -> float:
    """The mean of a measure over the seeds, in percent."""
    return 100 * fmean(record.measures()[measure] or 0.0 for record in records)


def cell(records: list[Run]) -> str:
    """Average accuracy and forgetting in percent, or what became of it."""
    broken = [record for record in records if not record.complete]
    if broken:
        return "diverged" if "loss" in (broken[0].error or "") else "failed"
    return f"{mean(records, 'average_accuracy'):.1f} / {mean(records, 'average_forgetting'):.1f}"


def table(sweeps: Sweeps) -> str:
    """A row per λ, a column per optimizer and form."""
    head = [f"{NAMES[o]}, {form}" for o in sweeps for form in FORMS]
    lines = ["| λ | " + " | ".join(head) + " |", "|---" * (1 + len(head)) + "|"]
    for strength in STRENGTHS:
        cells = [cell(found(of, form, strength)) for of in sweeps.values() for form in FORMS]
        lines.append(f"| {strength:g} | " + " | ".join(cells) + " |")
    baselines = [cell(found(of, None, None)) for of in sweeps.values() for _ in FORMS]
    return "\n".join([*lines, "| FineTune | " + " | ".join(baselines) + " |"])


def picture(sweeps: Sweeps, path: Path) -> None:
    """Average accuracy over λ, one panel per optimizer; a line ends where training diverges."""
    mpl.rcParams["svg.hashsalt"] = "retain"  # the same picture is the same file
    figure, axes = plt.subplots(1, len(sweeps), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (optimizer, of) in zip(axes, sweeps.items()):
        for form in FORMS:
            whole = [s for s in STRENGTHS if all(r.complete for r in found(of, form, s))]
            points = [mean(found(of, form, s), "average_accuracy") for s in whole]
            axis.semilogx(whole, points, label=form, **STYLE[form])
            if len(whole) < len(STRENGTHS):
                said = f"{form}: diverges for larger λ"
                place = {"textcoords": "offset points", "xytext": (12, -60)}
                arrow = {"arrowstyle": "->", "color": STYLE[form]["color"], "shrinkB": 6}
                axis.annotate(said, (whole[-1], points[-1]), arrowprops=arrow, **place)
        base = mean(found(of, None, None), "average_accuracy")
        axis.axhline(base, color="0.4", linestyle=":", label="FineTune")
        axis.set(title=NAMES[optimizer], xlabel="strength λ")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("average accuracy, %")
    names = axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=len(FORMS) + 1, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run both sweeps, then write what they measured into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("forms"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    sweeps = {
        optimizer: [results(optimizer, asked.data, asked.out, seed) for seed in asked.seeds]
        for optimizer in RATES
    }
    (asked.docs / "pictures").mkdir(parents=True, exist_ok=True)
    picture(sweeps, asked.docs / "pictures" / "forms.svg")
    page = asked.docs / "forms.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    measured = MEASURED.format(seeds=", ".join(map(str, asked.seeds)), table=table(sweeps).strip())
    page.write_text(f"{before}{BEGIN}{measured}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
