"""What is asked of a run: one frozen value, checked, that goes to JSON and comes back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from retain.closest import did_you_mean
from retain.errors import ConfigError
from retain.methods import METHODS, Form, ImportanceData, Scenario, options_of
from retain.tasks import Augmentation

AUTO = "auto"
Strength = float | Literal["auto"]
OptimizerName = Literal["sgd", "adam"]
BatchNorm = Literal["frozen", "moving"]
# What changes how a run is carried out and none of its numbers.
WITHOUT_EFFECT = frozenset({"workers"})
# Fields that are whole numbers, and the least that each may be.
WHOLE = {
    "epochs": 1, "batch_size": 1, "lr_drop_every": 1, "workers": 0, "image_size": 1,
    "classes_per_task": 1, "class_order_seed": 0, "samples_per_class": 1,
}  # fmt: skip
WORDS = ("tasks", "model", "optimizer", "batch_norm", "augmentation", "device", "weights", "title")


@dataclass(frozen=True)
class Config:
    """A comparison of methods on a sequence of tasks.

    Attributes:
        tasks: which tasks, such as "digits" or "folders:flowers=PATH,birds=PATH".
        model: which network, such as "mlp", "resnet18" or "path/to/file.py:function".
        methods: names of methods, in the order in which they run.
        seeds: every method runs once per seed; it covers everything that is drawn at random.
        strengths: λ by method, several for a sweep, "auto" to have it chosen on each new task;
            methods that are not named use their own default.
        forms: forms of the quadratic penalty; () is each method's own default.
        importance_on: the data that importance is computed on; several for a comparison.
        importance_classes: names of classes; of a task that has some of them, importance is
            computed on those alone.
        options: further options by method, such as {"lwf": {"temperature": 1.0}}.
        epochs: epochs per task.
        batch_size: samples per step.
        lr: learning rate.
        lr_drop_every: multiply the learning rate by 0.1 every so many epochs of a task.
        optimizer: "sgd" (with momentum) or "adam", anew for each task.
        batch_norm: "frozen" holds running statistics after the first task for methods that hold
            weights; "moving" lets them follow the new data for all.
        augmentation: what is done to image files in training: "none", or "crop-flip", random
            squares and flips. Importance and evaluation always see the square in the middle.
        amp: train and evaluate in mixed precision; importance stays in full precision.
        device: "auto", or a device of torch.
        workers: processes that read image files which do not fit in memory; with 0 threads do.
        weights: a file of pre-trained weights, or "default" for the library's own.
        image_size: side of the square that image files are cropped to.
        classes_per_task: classes that a task gets.
        class_order_seed: shuffles the classes before they are dealt out.
        samples_per_class: at most so many examples of a class in each split.
        scenario: "task-incremental" or "domain-incremental"; None is what suits the tasks.
        title: what the report calls the run.
        quick: whether it is a reduced version of something, which the report then says.
    """

    tasks: str
    model: str = "mlp"
    methods: tuple[str, ...] = ("finetune", "mas")
    seeds: tuple[int, ...] = (0,)
    strengths: Mapping[str, Strength | Sequence[Strength]] = field(default_factory=dict)
    forms: tuple[Form, ...] = ()
    importance_on: tuple[ImportanceData, ...] = ("train",)
    importance_classes: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    lr_drop_every: int | None = None
    optimizer: OptimizerName = "adam"
    batch_norm: BatchNorm = "frozen"
    augmentation: Augmentation = "none"
    amp: bool = False
    device: str = "auto"
    workers: int = 0
    weights: str | None = None
    image_size: int | None = None
    classes_per_task: int | None = None
    class_order_seed: int | None = None
    samples_per_class: int | None = None
    scenario: Scenario | None = None
    title: str = ""
    quick: bool = False

    def __post_init__(self) -> None:
        _refuse(_wrong_types(self))
        for name in ("methods", "seeds", "forms", "importance_on", "importance_classes"):
            object.__setattr__(self, name, _several(getattr(self, name)))
        several = {m: tuple(map(_number, _several(s))) for m, s in self.strengths.items()}
        object.__setattr__(self, "strengths", several)
        _refuse(_problems(self))

    def strengths_of(self, method: str) -> tuple[Strength, ...]:
        """The strengths asked for; none where the method's default is meant."""
        return cast("tuple[Strength, ...]", self.strengths.get(method, ()))

    @property
    def chooses_strength(self) -> bool:
        """Whether some strength is to be chosen on the new tasks."""
        return any(AUTO in self.strengths_of(method) for method in self.strengths)

    def to_json(self) -> dict[str, Any]:
        """The config as JSON knows it; `from_json` gives an equal one back."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Config:
        """The config that `to_json` came from.

        Raises:
            ConfigError: a name in it is none of the config's, or a value cannot be carried out.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = [f"{name!r}.{did_you_mean(name, known)}" for name in content if name not in known]
        if unknown:
            raise ConfigError("A config has no field " + " And no ".join(unknown))
        values = {name: _frozen(value) for name, value in content.items()}
        return cls(**values)

    def differences(self, other: Config) -> list[str]:
        """A line `name: this value → the other's` for everything that makes their runs differ."""
        mine, others = self.to_json(), other.to_json()
        names = [name for name in mine if name not in WITHOUT_EFFECT and mine[name] != others[name]]
        return [f"{name}: {mine[name]} → {others[name]}" for name in names]


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise ConfigError(" ".join(found))


def _wrong_types(config: Config) -> Iterable[str]:
    """What Python lets pass and no run could make sense of."""
    optional = {f.name for f in dataclasses.fields(Config) if f.default is None}
    expected: list[tuple[str, Any, str]] = [
        *((name, int, "a whole number") for name in WHOLE),
        ("lr", (int, float), "a number"),
        *((name, str, "a word") for name in WORDS),
        *((name, Mapping, "a mapping with methods as keys") for name in ("strengths", "options")),
    ]
    for name, kind, said in expected:
        value = getattr(config, name)
        missing = value is None and name in optional
        if not missing and (isinstance(value, bool) or not isinstance(value, kind)):
            yield f"{name} is {value!r}; expected {said}{' or None' if name in optional else ''}."


def _problems(config: Config) -> Iterable[str]:
    yield from _unknown("method", config.methods, METHODS)
    yield from _unknown("optimizer", [config.optimizer], get_args(OptimizerName))
    yield from _unknown("batch_norm", [config.batch_norm], get_args(BatchNorm))
    yield from _unknown("form", config.forms, get_args(Form))
    yield from _unknown("importance_on", config.importance_on, get_args(ImportanceData))
    yield from _unknown("augmentation", [config.augmentation], get_args(Augmentation))
    for name in ("methods", "seeds", "importance_on", "forms", "importance_classes"):
        values = getattr(config, name)
        if not values and name not in ("forms", "importance_classes"):
            yield f"{name} is empty; name at least one."
        if len(set(values)) < len(values):
            yield f"{name} names something twice: {', '.join(map(str, values))}."
    if not (math.isfinite(config.lr) and config.lr > 0):
        yield f"lr is {config.lr}; expected more than 0."
    for name, least in WHOLE.items():
        value = getattr(config, name)
        if value is not None and value < least:
            yield f"{name} is {value}; expected {least} or more."
    for seed in config.seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            yield f"seeds has {seed!r}; expected whole numbers, 0 or more."
    yield from _strength_problems(config)
    for method, options in config.options.items():
        if method not in METHODS:
            yield from _unknown("method", [method], METHODS)
        else:
            yield from _option_problems(method, options)


def _unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> Iterable[str]:
    names = list(known)
    for name in given:
        if name not in names:
            yield f"Unknown {kind} {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}."


def _strength_problems(config: Config) -> Iterable[str]:
    for method in config.strengths:
        strengths = config.strengths_of(method)
        if method not in METHODS:
            yield from _unknown("method", [method], METHODS)
        elif method not in config.methods:
            yield f"A strength is given for {method}, which is not among the methods."
        elif not METHODS[method].has_strength():
            having = ", ".join(name for name in METHODS if METHODS[name].has_strength())
            yield f"{method} has no strength λ to set. Methods that have one: {having}."
        elif not strengths or len(set(strengths)) < len(strengths):
            yield f"The strengths of {method} are {list(strengths)}; expected different ones."
        for strength in strengths:
            if strength != AUTO and not _is_strength(strength):
                yield f"The strength of {method} is {strength}; expected a number ≥ 0, or auto."


def _is_strength(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]


def _option_problems(method: str, options: Mapping[str, Any]) -> Iterable[str]:
    try:
        options_of(method, options)
    except ConfigError as error:
        yield str(error)


def _several(given: Any) -> tuple[Any, ...]:
    """One value or several, always as a tuple."""
    return tuple(given) if isinstance(given, (tuple, list)) else (given,)


def _number(strength: Any) -> Any:
    return float(strength) if isinstance(strength, int) else strength


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value
