"""What is asked of a run: one frozen value, checked, that goes to JSON and comes back.

Every option is described here (those about tasks in `retain.tasks.options`), and nowhere else: the
command line, its help and the table in the documentation are made from these fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from retain.errors import ConfigError
from retain.experiment.checks import STRICT, Several, Word, checked, several, unknown, wrong
from retain.header import shown
from retain.methods import METHODS, Form, ImportanceData, options_of
from retain.ranges import fits
from retain.tasks.code_files import USAGE as CODE_USAGE
from retain.tasks.load import TASKS
from retain.tasks.options import LARGEST, LARGEST_SEED, TaskChoices, option

AUTO = "auto"
Strength = float | Literal["auto"]
OptimizerName = Literal["sgd", "adam"]
BatchNorm = Literal["frozen", "frozen-for-all", "moving"]
# What changes how a run is carried out and none of its numbers.
WITHOUT_EFFECT = frozenset({"loaders", "comparison"})
FORMERLY = {"workers": "loaders"}  # names of fields in files that were written earlier
# The knobs other than λ, such as freeze.blocks.
SWEPT = tuple(f"{m}.{k.knob}" for m, k in METHODS.items() if k.knob not in (None, "strength"))
SEEDS = "whole numbers, 0 or more, up to 2^53"
LISTS = ("methods", "seeds", "importance_on", "forms", "importance_classes")
NOT_EMPTY = ("methods", "seeds", "importance_on")


def _seed(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value <= LARGEST_SEED else wrong(SEEDS)


def _by_method(strengths: Any) -> Any:
    """Of each method one value or several as several, whole numbers as numbers."""
    if not isinstance(strengths, Mapping):
        return strengths
    return {method: tuple(map(_number, several(given))) for method, given in strengths.items()}


def _number(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and abs(value) < LARGEST_SEED else value


def spelled(flag: str | None, example: str = "") -> dict[str, Any]:
    """How an option is written on the command line, where that is not its name with dashes.

    Args:
        flag: such as "--strength"; None where the command line does not have it.
        example: of a value, for the documentation.
    """
    return {"flag": flag, "example": example}


@checked
@dataclass(frozen=True, config=STRICT)
class Config(TaskChoices):
    """A comparison of methods on a sequence of tasks. Each field says what it is.

    Raises:
        ConfigError: something that cannot be carried out; everything that is wrong, at once.

    Examples:
        >>> from retain.experiment import Config
        >>> Config("digits", methods=("finetune", "mas"), seeds=(0, 1, 2)).batch_size
        128
    """

    tasks: Annotated[
        Word,
        Field(
            description="which tasks to learn, one after another: "
            f"{'; '.join(usage for usage, _ in TASKS.values())}; {CODE_USAGE}. A "
            "folder of images has train/ and test/, each with a folder per class",
        ),
    ]
    model: Word = option(
        "mlp",
        "which network: mlp, cnn, a torchvision or timm name, or path/to/file.py:function",
    )
    methods: Annotated[tuple[str, ...], Several] = option(
        ("finetune", "mas"),
        f"methods to compare, in the order in which they run: {', '.join(METHODS)}",
        json_schema_extra=spelled("--methods", "a,b"),
    )  # fmt: skip
    seeds: Annotated[tuple[Annotated[int, BeforeValidator(_seed)], ...], Several] = option(
        (0,), "every method runs once per seed; a seed decides everything that is drawn at random",
        json_schema_extra=spelled("--seeds", "0,1,2"),
    )  # fmt: skip
    strengths: Annotated[Mapping[str, Any], BeforeValidator(_by_method)] = option(
        dict,
        "λ by method: one value, several for a sweep (mas=0.1:1:10), or auto, which chooses λ on "
        "each new task without old data",
        left_out="each method's own, measured default",
        json_schema_extra=spelled("--strength", "mas=1,ewc=400"),
    )
    forms: Annotated[tuple[Form, ...], Several] = option(
        (),
        "how a quadratic penalty acts: gradient, proximal or adaptive; several for a comparison",
        left_out="each method's own default",
        json_schema_extra=spelled("--form", "adaptive"),
    )
    importance_on: Annotated[tuple[ImportanceData, ...], Several] = option(
        ("train",),
        "data that Ω is computed on, without its labels: train, test or train+test; several for a "
        "comparison",
        json_schema_extra=spelled("--importance-on", "train"),
    )  # fmt: skip
    importance_classes: Annotated[tuple[str, ...], Several] = option(
        (), "class names; in a task that has any of these classes, Ω is computed on them alone",
        json_schema_extra=spelled("--importance-classes", "a,b"),
    )  # fmt: skip
    options: Mapping[str, Mapping[str, Any]] = option(
        dict, "a method's own options, as METHOD.OPTION=VALUE",
        json_schema_extra=spelled("--set", "lwf.temperature=1"),
    )  # fmt: skip
    sweeps: Annotated[Mapping[str, Any], BeforeValidator(_by_method)] = option(
        dict,
        f"several values of a method's knob other than λ ({', '.join(SWEPT)}), as "
        "METHOD=VALUE:VALUE",
        json_schema_extra=spelled("--sweep", "replay=0.01:0.1"),
    )
    recipe: Word | None = option(
        None,
        "your own training function, path/to/file.py:function, called as function(model, "
        "optimizer, loader) for each task in place of the epochs",
    )
    epochs: int = option(10, "epochs per task", ge=1, le=LARGEST)
    batch_size: int = option(128, "samples per step", ge=1, le=LARGEST)
    lr: float = option(1e-3, "learning rate; each task gets a new optimizer", gt=0, le=1e30)
    lr_drop_every: int | None = option(
        None,
        "multiply the learning rate by 0.1 each time this many epochs of a task have passed",
        ge=1,
        le=LARGEST,
    )
    optimizer: OptimizerName = option("adam", "which optimizer: adam, or sgd with momentum 0.9")
    batch_norm: BatchNorm = option(
        "frozen",
        "running statistics after the first task: frozen (for methods that hold weights), "
        "frozen-for-all (for every method, so that none gains from it), or moving (with the new "
        "data, for every method)",
    )
    amp: bool = option(
        False,
        "train and evaluate in mixed precision: float16 with scaled gradients on CUDA, else "
        "bfloat16; weights, updates and Ω stay in float32",
    )
    device: Word = option(
        "auto",
        "where to compute: auto (an accelerator if there is one), cpu, cuda, mps",
    )
    weights: Word | None = option(
        None,
        "pre-trained weights: a file (safetensors, or a torch file of weights alone), or default "
        "for those that come with the model",
    )
    title: str = option("", "title of the report")
    comparison: bool = option(
        False,
        "whether the report answers what each method forgets at equal accuracy on new tasks",
        json_schema_extra=spelled(None),
    )
    quick: bool = option(
        False, "whether this is a reduced version of something; the report then says so",
        json_schema_extra=spelled(None),
    )  # fmt: skip

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Config:
        found = list(_problems(self))
        if found:
            raise ConfigError(" ".join(found))
        return self

    def strengths_of(self, method: str) -> tuple[Strength, ...]:
        """The strengths asked for; none where the method's default is meant.

        Examples:
            >>> from retain.experiment import Config
            >>> Config("digits", strengths={"mas": (0.1, 1.0)}).strengths_of("mas")
            (0.1, 1.0)
        """
        return cast("tuple[Strength, ...]", self.strengths.get(method, ()))

    @property
    def chooses_strength(self) -> bool:
        """Whether some strength is to be chosen on the new tasks.

        Examples:
            >>> from retain.experiment import Config
            >>> Config("digits", strengths={"mas": "auto"}).chooses_strength
            True
        """
        return any(AUTO in self.strengths_of(method) for method in self.strengths)

    def to_json(self) -> dict[str, Any]:
        """The config as JSON knows it; `from_json` gives an equal one back.

        Examples:
            >>> from retain.experiment import Config
            >>> Config("digits", seeds=(0, 1)).to_json()["seeds"]
            [0, 1]
        """
        return {name: plain(getattr(self, name)) for name in FIELDS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Config:
        """The config that `to_json` came from.

        Raises:
            ConfigError: a name in it is none of the config's, or a value cannot be carried out.

        Examples:
            >>> from retain.experiment import Config
            >>> config = Config("digits", lr=0.05)
            >>> Config.from_json(config.to_json()) == config
            True
        """
        now = {old: new for old, new in FORMERLY.items() if new not in content}
        return cls(**{now.get(name, name): frozen(value) for name, value in content.items()})

    def differences(self, other: Config) -> list[str]:
        """A line `name: this value → the other's` for everything that makes their runs differ.

        Examples:
            >>> from retain.experiment import Config
            >>> Config("digits").differences(Config("digits", epochs=3))
            ['epochs: 10 → 3']
        """
        mine, others = self.to_json(), other.to_json()
        names = [name for name in mine if name not in WITHOUT_EFFECT and mine[name] != others[name]]
        return [f"{name}: {mine[name]} → {others[name]}" for name in names]


# Every field, those about tasks last.
FIELDS = tuple(
    sorted(
        (one.name for one in dataclasses.fields(Config)),
        key=[one.name for one in dataclasses.fields(TaskChoices)].__contains__,
    )
)


def _problems(config: Config) -> Iterator[str]:
    """What each value may be on its own, and not beside the others."""
    yield from _unknown_methods(config.methods)
    for name in LISTS:
        values = getattr(config, name)
        if not values and name in NOT_EMPTY:
            yield f"{name} is empty; name at least one."
        if len(set(values)) < len(values):
            yield f"{name} names something twice: {', '.join(map(str, values))}."
    for name in config.importance_classes:
        if not name:
            yield "importance_classes has an empty name; expected names of classes."
    yield from _strength_problems(config)
    yield from _sweep_problems(config)
    yield from _recipe_problems(config)
    for method, options in config.options.items():
        if method not in METHODS:
            yield from _unknown_methods([method])
        else:
            yield from _option_problems(method, options)


def _unknown_methods(given: Iterable[str]) -> Iterator[str]:
    yield from (unknown("method", name, METHODS) for name in given if name not in METHODS)


def _strength_problems(config: Config) -> Iterator[str]:
    for method in config.strengths:
        strengths = config.strengths_of(method)
        if method not in METHODS:
            yield from _unknown_methods([method])
        elif method not in config.methods:
            yield f"A strength is given for {method}, which is not among the methods."
        elif not METHODS[method].has_strength():
            having = ", ".join(name for name in METHODS if METHODS[name].has_strength())
            yield f"{method} has no strength λ to set. Methods that have one: {having}."
        elif not strengths or len(set(strengths)) < len(strengths):
            yield f"The strengths of {method} are {list(strengths)}; expected different ones."
        for strength in strengths:
            if strength != AUTO and not _is_strength(strength):
                said = shown(strength)
                yield f"The strength of {method} is {said}; expected a number ≥ 0, or auto."


def _sweep_problems(config: Config) -> Iterator[str]:
    for method, values in config.sweeps.items():
        if method not in METHODS:
            yield from _unknown_methods([method])
            continue
        knob = METHODS[method].knob
        if method not in config.methods:
            yield f"A sweep is given for {method}, which is not among the methods."
        elif knob is None:
            able = ", ".join(m for m in METHODS if METHODS[m].knob not in (None, "strength"))
            yield f"{method} has no knob to sweep. Methods that have one beside λ: {able}."
        elif knob == "strength":
            yield f"The knob of {method} is its strength; give several with --strength."
        elif knob in config.options.get(method, {}):
            yield f"{method}.{knob} is swept, and set to one value as well; leave one of them out."
        elif len(set(values)) < max(2, len(values)):
            said = shown(list(values))
            yield f"The sweep of {method}.{knob} is {said}; expected two different values or more."
        else:
            for value in values:
                yield from _option_problems(method, {knob: knob_value(method, value)})


def knob_value(method: str, value: Any) -> Any:
    """A value of a method's knob, a whole number where the knob counts something."""
    knob, types = METHODS[method].knob, get_type_hints(METHODS[method].Options, include_extras=True)
    if knob is None or fits(value, types[knob]):
        return value
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and fits(int(value), types[knob]) else value


def _recipe_problems(config: Config) -> Iterator[str]:
    if config.recipe is None:
        return
    within = [m for m in config.methods if m in METHODS and not METHODS[m].protects_from_outside]
    if within:
        able = ", ".join(m for m in METHODS if METHODS[m].protects_from_outside)
        yield (
            f"A recipe has a loss and data of its own, which {', '.join(within)} would change. "
            f"Methods that protect from outside: {able}."
        )
    for method, options in config.options.items():
        if method in config.methods and options.get("drop_transfer"):
            yield f"{method}.drop_transfer changes the forward pass, which a recipe has of its own."


def _is_strength(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value >= 0


def _option_problems(method: str, options: Mapping[str, Any]) -> Iterator[str]:
    try:
        options_of(method, options)
    except ConfigError as error:
        yield str(error)


def plain(value: Any) -> Any:
    """As JSON knows it: of tuples lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def frozen(value: Any) -> Any:
    """As it was before `plain`: of lists tuples."""
    if isinstance(value, Mapping):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(frozen(item) for item in value)
    return value
