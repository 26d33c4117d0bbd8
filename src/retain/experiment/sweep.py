"""A comparison made of a run: each method along its knob, around its default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from retain.errors import ConfigError
from retain.experiment.config import AUTO, Config
from retain.experiment.stage import task_options
from retain.methods import METHODS
from retain.methods.freeze import blocks_of
from retain.models import build_model
from retain.tasks import load_tasks

AROUND = (1e-3, 0.01, 0.1, 1.0, 10.0)  # times the default strength
FREE = "finetune"  # what the others are compared with


def swept(config: Config) -> Config:
    """The config with FineTune in it, and a sweep for every method that has a knob and none yet.

    Raises:
        ConfigError: a sweep with one value.
    """
    problems = [*_single(config), *_set_once(config)]
    if problems:
        raise ConfigError(" ".join(problems))
    methods = config.methods if FREE in config.methods else (FREE, *config.methods)
    strengths, sweeps = dict(config.strengths), dict(config.sweeps)
    for method in methods:
        kind = METHODS[method]
        if kind.knob is None or method in strengths or method in sweeps:
            continue
        if kind.knob == "strength":
            strengths[method] = tuple(times * kind.Options().strength for times in AROUND)
        else:
            sweeps[method] = kind.sweep or _blocks(config)
    sweeps = {method: values for method, values in sweeps.items() if len(values) > 1}
    return replace(config, methods=methods, strengths=strengths, sweeps=sweeps, comparison=True)


def _single(config: Config) -> Iterator[str]:
    for method in config.strengths:
        given = config.strengths_of(method)
        if len(given) == 1 and given[0] != AUTO:
            yield (
                f"The sweep of {method}.strength is one value, {given[0]:g}; a comparison needs "
                f"two or more, such as {method}={given[0] or 1:g}:{10 * (given[0] or 1):g}."
            )


def _set_once(config: Config) -> Iterator[str]:
    """Knobs that --set gives one value."""
    for method, options in config.options.items():
        knob = METHODS[method].knob
        if method in config.methods and knob is not None and knob in options:
            option = "--strength" if knob == "strength" else "--sweep"
            yield (
                f"{method}.{knob} is set to one value, {options[knob]}; a comparison needs two or "
                f"more: {option} {method}=VALUE:VALUE in place of --set."
            )


def _blocks(config: Config) -> tuple[float, ...]:
    """How many first blocks of the config's network to freeze: up to five numbers, and all."""
    sequence = load_tasks(config.tasks, task_options(config), progress=lambda *_: None)
    network = build_model(
        config.model,
        input_shape=sequence.input_shape,
        seed=0,
        weights=config.weights,
        input_dtype=sequence.input_dtype,
    )
    number = len(blocks_of(network.backbone))
    return tuple(sorted({float(max(1, round(number * part / 5))) for part in range(1, 6)}))
