"""Which form of the penalty? MAS on split Fashion-MNIST over eight decades of λ, SGD and Adam.

    python experiments/forms.py --data /usr/share/datasets/fashion-mnist --out forms --docs docs

Writes docs/forms.md and docs/forms.svg. A run that was interrupted is taken up again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from retain.experiment import Config, Results, Run, run

STRENGTHS = tuple(10.0**power for power in range(-2, 7))
FORMS = ("gradient", "proximal", "adaptive")
RATES = {"sgd": 0.01, "adam": 1e-3}
NAMES = {"sgd": "SGD", "adam": "Adam"}
STYLE = {
    "gradient": ("#D55E00", "s"),
    "proximal": ("#0072B2", "o"),
    "adaptive": ("#009E73", "D"),
}


def config(optimizer: str, data: str) -> Config:
    """Five tasks of two classes, 784-400-400, four epochs, batches of 128, seed 0."""
    return Config(
        tasks=f"fashion-mnist={data}",
        model="mlp",
        methods=("finetune", "mas"),
        strengths={"mas": STRENGTHS},
        forms=FORMS,
        epochs=4,
        batch_size=128,
        optimizer=optimizer,
        lr=RATES[optimizer],
        title=f"Forms of the penalty, {NAMES[optimizer]}",
    )


def results(optimizer: str, data: str, out: Path) -> Results:
    """The sweep with one optimizer, made or gone on with in a folder of its own."""
    folder = out / optimizer
    return run(config(optimizer, data), out=folder, resume=(folder / "results.json").exists())


def found(of: Results, form: str, strength: float) -> Run:
    """The run with that form and λ."""
    return next(r for r in of.runs if (r.form, r.strength) == (form, strength))


def cell(record: Run) -> str:
    """Average accuracy and forgetting in percent, or what became of it."""
    if not record.complete:
        return "diverged" if "loss" in (record.error or "") else "failed"
    measures = record.measures()
    return f"{100 * measures['average_accuracy']:.2f} / {100 * measures['average_forgetting']:.2f}"


def table(sweeps: dict[str, Results]) -> str:
    """A row per λ, a column per optimizer and form."""
    head = [f"{NAMES[o]}, {form}" for o in sweeps for form in FORMS]
    lines = ["| λ | " + " | ".join(head) + " |", "|---" * (1 + len(head)) + "|"]
    for strength in STRENGTHS:
        cells = [cell(found(of, form, strength)) for of in sweeps.values() for form in FORMS]
        lines.append(f"| {strength:g} | " + " | ".join(cells) + " |")
    baselines = [cell(of.runs[0]) for of in sweeps.values() for _ in FORMS]
    return "\n".join([*lines, "| FineTune | " + " | ".join(baselines) + " |"])


def picture(sweeps: dict[str, Results], path: Path) -> None:
    """Average accuracy over λ, one panel per optimizer."""
    mpl.rcParams["svg.hashsalt"] = "retain"  # the same picture is the same file
    figure, axes = plt.subplots(1, len(sweeps), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (optimizer, of) in zip(axes, sweeps.items()):
        for form in FORMS:
            runs = [(s, found(of, form, s)) for s in STRENGTHS]
            points = [(s, 100 * r.measures()["average_accuracy"]) for s, r in runs if r.complete]
            colour, marker = STYLE[form]
            axis.semilogx(*zip(*points), color=colour, marker=marker, label=form)
        base = of.runs[0].measures()["average_accuracy"]
        axis.axhline(100 * base, color="0.4", linestyle=":", label="FineTune")
        axis.set(title=NAMES[optimizer], xlabel="strength λ")
    axes[0].set_ylabel("average accuracy, %")
    axes[0].legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run both sweeps, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("forms"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    sweeps = {optimizer: results(optimizer, asked.data, asked.out) for optimizer in RATES}
    asked.docs.mkdir(exist_ok=True)
    picture(sweeps, asked.docs / "forms.svg")
    page = Path(__file__).with_name("forms.md").read_text(encoding="utf-8")
    filled = page.replace("TABLE", table(sweeps))
    (asked.docs / "forms.md").write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
