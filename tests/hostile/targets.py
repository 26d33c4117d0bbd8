"""What everything public is called with when it works: each target is made anew for every try.

A call that nobody should make is one of these with one argument replaced.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

import retain
from retain import files, methods, models, report, studies, tasks
from retain.experiment import Config, Results
from retain.experiment import run as run_config
from retain.integrations import lightning, transformers
from retain.integrations.peft import LoraPenalty, base_weights
from retain.integrations.transformers import logits_norm
from retain.passports import Passport

Call = Callable[..., Any]
ROOMS = ("retain", "retain.integrations.peft", "retain.integrations.transformers",
         "retain.integrations.lightning", "retain.passports")  # fmt: skip
# What a trainer calls, with what it has; what torch and Mapping ask for; what holds no work.
CALLED_BY_TRAINERS = ("on_", "teardown", "state_key", "state_dict", "load_state_dict", "state")
CALLBACKS = (transformers.RetainCallback, lightning.RetainCallback)
NOT_CALLED = {"RetainError", "StrengthChoice", "Passport"}


@dataclass(frozen=True)
class Target:
    """Something public.

    Attributes:
        name: as `retain.MAS.observe`, without the first word.
        make: makes what is called, and arguments with which it works, in a folder.
    """

    name: str
    make: Callable[[Path], tuple[Call, dict[str, Any]]]


def network() -> nn.Module:
    """A small model."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def data() -> list[Any]:
    """Two batches with labels."""
    return [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1])) for _ in range(2)]


def optimizer_of(model: nn.Module, kind: str = "SGD") -> torch.optim.Optimizer:
    """One of torch's, for the model."""
    made: torch.optim.Optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    return made


def observed(kind: str = "MAS") -> Any:
    """A memory that has seen data, or steps."""
    memory = getattr(retain, kind)(network())
    if kind != "SI":
        return memory.observe(data(), progress=False)
    optimizer = optimizer_of(memory.model)
    with memory.attach(optimizer):
        memory.model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return memory


def consolidated(kind: str = "MAS") -> Any:
    """A memory that protects."""
    return observed(kind).consolidate()


def adapted() -> tuple[Any, nn.Module]:
    """A memory, and its model with adapters."""
    memory = consolidated()
    settings = peft.LoraConfig(r=2, target_modules=["0", "2"])
    return memory, peft.get_peft_model(memory.model, settings)


def lora() -> LoraPenalty:
    """The penalty of a model with adapters."""
    return LoraPenalty(*adapted())


def omega() -> retain.Importance:
    """Ω of the small model."""
    found: retain.Importance = consolidated().importance
    return found


def passport() -> Passport:
    """Of the small model."""
    return retain.passport(network(), data(), progress=False)


def _memories(kind: str) -> Iterator[Target]:
    """The class and each of its verbs."""

    def verb(
        name: str, make: Callable[[], Any], given: Callable[[Any, Path], dict[str, Any]]
    ) -> Target:
        def made(folder: Path) -> tuple[Call, dict[str, Any]]:
            memory = make()
            return getattr(memory, name), given(memory, folder)

        return Target(f"{kind}.{name}", made)

    def protects() -> Any:
        return consolidated(kind)

    yield Target(kind, lambda _: (getattr(retain, kind), {"model": network()}))
    yield verb("observe", lambda: getattr(retain, kind)(network()), lambda *_: {"data": data()})
    yield verb("consolidate", lambda: observed(kind), lambda *_: {})
    yield verb("attach", protects, lambda m, _: {"optimizer": optimizer_of(m.model)})
    yield verb("check", protects, lambda *_: {})
    yield verb("save", protects, lambda _, folder: {"path": folder / "again.safetensors"})
    yield verb("load_state_dict", protects, lambda m, _: {"state": m.state_dict()})
    yield verb("forecast", protects, lambda *_: {"other": data()})
    if kind == "LocalMAS":
        yield verb("observing", lambda: getattr(retain, kind)(network()), lambda *_: {})


def _saved(folder: Path, make: Callable[[], Any]) -> Path:
    path = folder / "saved.safetensors"
    make().save(path)
    return path


def _read(path: Path) -> dict[str, Any]:
    tensors, header = files.read(path, "importance")
    return {"path": path, "tensors": tensors, "header": header}


def _finished(folder: Path) -> Path:
    """A folder that holds the results of a run of nothing."""
    (folder / "out").mkdir(exist_ok=True)
    Results(Config("digits", methods=("finetune",))).write(folder / "out")
    return folder / "out"


def _of_the_library() -> Iterator[Target]:
    yield Target(
        "load",
        lambda folder: (retain.load, {"path": _saved(folder, consolidated), "model": network()}),
    )
    yield Target(
        "load of a passport",
        lambda folder: (retain.load, {"path": _saved(folder, passport), "model": network()}),
    )
    yield Target(
        "repair",
        lambda _: (
            retain.repair,
            {"base": network(), "tuned": network(), "memory": consolidated()},
        ),
    )
    yield Target(
        "repair of state dicts",
        lambda _: (
            retain.repair,
            {"base": network().state_dict(), "tuned": network().state_dict(), "memory": omega()},
        ),
    )
    yield Target("passport", lambda _: (retain.passport, {"model": network(), "data": data()}))
    yield Target("frozen_statistics", lambda _: (retain.frozen_statistics, {"model": network()}))
    yield Target(
        "choose_strength",
        lambda _: (retain.choose_strength, {"train": lambda _: 0.5, "start": 1.0}),
    )
    means = {"0.weight": torch.ones(4, 3)}
    yield Target("Importance", lambda _: (retain.Importance, {"means": means, "samples": 3}))
    yield Target("Importance.pool", lambda _: (retain.Importance.pool, {"parts": [omega()]}))
    yield Target(
        "Importance.load", lambda folder: (retain.Importance.load, {"path": _saved(folder, omega)})
    )
    yield Target(
        "Importance.of_file",
        lambda folder: (retain.Importance.of_file, _read(_saved(folder, omega))),
    )
    yield Target(
        "Importance.save", lambda folder: (omega().save, {"path": folder / "again.safetensors"})
    )
    yield Target("Importance.to", lambda _: (omega().to, {"device": "cpu"}))
    yield Target("Importance.plot", lambda folder: (omega().plot, {"path": folder / "a.png"}))
    yield Target("Passport.save", lambda folder: (passport().save, {"path": folder / "a"}))
    yield Target(
        "Passport.load", lambda folder: (Passport.load, {"path": _saved(folder, passport)})
    )
    yield Target(
        "Passport.write_page", lambda folder: (passport().write_page, {"path": folder / "a.html"})
    )
    # settings that may be set at any time
    for name, good in (
        ("strength", 1.0),
        ("exclude", "2"),
        ("observed", None),
        ("samples_of", None),
        ("padding_mask", None),
    ):
        yield Target(
            f"MAS.{name} =",
            lambda _, name=name, good=good: (
                _setter(name),
                {"value": omega() if name == "observed" else good},
            ),
        )
    for kind in ("Adafactor", "AdamW", "Rprop", "LBFGS", "SparseAdam", "Muon"):
        yield Target(f"MAS.attach of {kind}", lambda _, kind=kind: _attach(kind))


def _setter(name: str) -> Call:
    memory = observed() if name != "strength" else consolidated()

    def put(value: Any) -> None:
        setattr(memory, name, value)

    return put


def _attach(kind: str) -> tuple[Call, dict[str, Any]]:
    memory = consolidated()
    weights = [p for p in memory.model.parameters() if kind != "Muon" or p.ndim == 2]
    optimizer = getattr(torch.optim, kind)(weights, lr=0.1)

    def attach_and_step(**given: Any) -> None:
        with memory.attach(optimizer, **given):

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss: torch.Tensor = memory.model(torch.randn(4, 3)).square().sum()
                loss.backward()
                return loss

            optimizer.step(closure)

    attach_and_step.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            one
            for one in inspect.signature(memory.attach).parameters.values()
            if one.name != "optimizer"
        ]
    )
    return attach_and_step, {}


def _of_trainers() -> Iterator[Target]:
    yield Target(
        "integrations.peft.LoraPenalty",
        lambda _: (LoraPenalty, dict(zip(("memory", "peft_model"), adapted(), strict=True))),
    )
    yield Target(
        "integrations.peft.base_weights", lambda _: (base_weights, {"peft_model": adapted()[1]})
    )
    lora_verbs: dict[str, Callable[[LoraPenalty, Path], dict[str, Any]]] = {
        "attach": lambda one, _: {
            "optimizer": torch.optim.SGD(
                [p for p in one.model.parameters() if p.requires_grad], lr=0.1
            )
        },
        "save": lambda _, folder: {"path": folder / "again.safetensors"},
        "load": lambda one, folder: {"path": _saved(folder, lambda: one)},
        "load_state_dict": lambda one, _: {"state": one.state_dict()},
    }
    for name, given in lora_verbs.items():

        def made(folder: Path, name: str = name, given: Any = given) -> tuple[Call, Any]:
            one = lora()
            return getattr(one, name), given(one, folder)

        yield Target(f"integrations.peft.LoraPenalty.{name}", made)
    yield Target(
        "integrations.transformers.RetainCallback",
        lambda _: (transformers.RetainCallback, {"memory": consolidated()}),
    )
    yield Target(
        "integrations.transformers.logits_norm",
        lambda _: (logits_norm, {"model": network(), "head": nn.Linear(2, 3)}),
    )
    yield Target(
        "integrations.lightning.RetainCallback",
        lambda _: (lightning.RetainCallback, {"memory": consolidated()}),
    )


def _of_runs() -> Iterator[Target]:
    yield Target("experiment.Config", lambda _: (Config, {"tasks": "digits"}))
    few: dict[str, Any] = {
        "samples_per_class": 4,
        "batch_size": 4,
        "epochs": 1,
        "methods": ("finetune",),
        "classes_per_task": 5,
    }
    yield Target(
        "experiment.run",
        lambda folder: (
            run_config,
            {"config": Config("digits", **few), "out": folder / "run", "progress": False},
        ),
    )
    for name in ("table", "summary", "write"):
        yield Target(
            f"report.{name}",
            lambda folder, name=name: (getattr(report, name), {"results": _finished(folder)}),
        )
    yield Target(
        "studies.study_named",
        lambda _: (studies.study_named, {"name": "table3", "asked": studies.Asked(data="digits")}),
    )
    yield Target("studies.gather", lambda folder: (studies.gather, {"folder": _finished(folder)}))
    yield Target("methods.method_named", lambda _: (methods.method_named, {"name": "mas"}))
    yield Target(
        "methods.options_of",
        lambda _: (methods.options_of, {"name": "mas", "given": {"strength": 1.0}}),
    )
    yield Target(
        "models.build_model",
        lambda _: (models.build_model, {"spec": "mlp", "input_shape": (1, 8, 8), "seed": 0}),
    )
    yield Target("tasks.load_tasks", lambda _: (tasks.load_tasks, {"spec": "digits"}))


def targets() -> list[Target]:
    """All of them."""
    memories = [one for kind in ("MAS", "LocalMAS", "EWC", "SI") for one in _memories(kind)]
    return [*memories, *_of_the_library(), *_of_trainers(), *_of_runs()]


def everything_public() -> Iterator[str]:
    """What is public and takes arguments, in the rooms of the library and of its integrations."""
    for room in ROOMS:
        module = importlib.import_module(room)
        own = getattr(module, "__all__", None) or ["RetainCallback"]
        prefix = room.removeprefix("retain").removeprefix(".")
        prefix = "" if prefix in ("", "passports") else f"{prefix}."
        for name in own:
            found = getattr(module, name)
            if name in NOT_CALLED or not callable(found) or not inspect.signature(found).parameters:
                continue
            yield f"{prefix}{name}"
            if inspect.isclass(found):
                yield from (f"{prefix}{name}.{verb}" for verb in _verbs(found))


def _verbs(kind: type) -> Iterator[str]:
    """The public methods of a class that take arguments and are the library's own."""
    for name, member in inspect.getmembers(kind, callable):
        if name.startswith(("_", *(CALLED_BY_TRAINERS if kind in CALLBACKS else ()))):
            continue
        if not getattr(member, "__module__", "").startswith("retain"):
            continue
        takes = [p for p in inspect.signature(member).parameters.values() if p.name != "self"]
        if takes:
            yield name
