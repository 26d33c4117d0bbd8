"""Networks of torchvision and timm by their names, with their own weights on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from retain.closest import did_you_mean
from retain.errors import ConfigError, FileError
from retain.extras import needs
from retain.tasks.crops import IMAGENET_MEAN, IMAGENET_STD

# Networks with auxiliary outputs, which are for training from scratch only and are left out.
WITH_AUXILIARY = frozenset({"googlenet", "inception_v3"})


def named_model(name: str, *, default_weights: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """(the network of that name, what is worth knowing about it); torchvision's goes first.

    Raises:
        ConfigError: neither torchvision nor timm has it.
        FileError: its default weights could not be fetched.
    """
    if name in torchvision_names():
        return _torchvision(name, default_weights), ()
    if name.partition(".")[0] in timm_names():
        model = _timm(name, default_weights)
        return model, _normalisation_note(model, name) if default_weights else ()
    known = ["mlp", "cnn", *torchvision_names(), *timm_names()]
    raise ConfigError(
        f"No model is called {name!r}.{did_you_mean(name, known)} Known: mlp, cnn, the names of "
        "torchvision and timm (torchvision.models.list_models(), timm.list_models()), and "
        "path/to/file.py:function."
    )


def torchvision_names() -> list[str]:
    """The names of torchvision's networks for classification."""
    models = needs("torchvision.models")
    return list(models.list_models(module=models))


def timm_names() -> list[str]:
    """The names of timm's networks."""
    return list(needs("timm").list_models())


def _torchvision(name: str, default_weights: bool) -> nn.Module:
    models = needs("torchvision.models")
    options: dict[str, Any] = {"aux_logits": False} if name in WITH_AUXILIARY else {}
    if not default_weights:
        if name in WITH_AUXILIARY:
            options["init_weights"] = True
        model: nn.Module = models.get_model(name, weights=None, **options)
        return model
    url = models.get_model_weights(name).DEFAULT.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        model = models.get_model(name, weights="DEFAULT", **options)
    except (OSError, RuntimeError) as error:
        raise FileError(
            f"torchvision's weights of {name} could not be fetched: {error}. Download {url} where "
            f"there is a network, and put it into {folder} or give it with weights=FILE."
        ) from error
    return model


def _timm(name: str, default_weights: bool) -> nn.Module:
    timm = needs("timm")
    try:
        model: nn.Module = timm.create_model(name, pretrained=default_weights)
    # The hub's client raises its own kinds of errors, and those of the HTTP library below it.
    except Exception as error:
        if not default_weights:
            raise ConfigError(f"timm cannot make {name!r}: {error}") from error
        raise FileError(
            f"timm's weights of {name} could not be fetched: {error}. Where there is a network, "
            f"save them with torch.save(timm.create_model({name!r}, pretrained=True).state_dict(), "
            "FILE), and give the file with weights=FILE."
        ) from error
    return model


def _normalisation_note(model: nn.Module, name: str) -> tuple[str, ...]:
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    if tuple(mean) == IMAGENET_MEAN and tuple(std) == IMAGENET_STD:
        return ()
    return (
        f"{name} was trained on images normalised with mean {tuple(mean)} and deviation "
        f"{tuple(std)}; here they are normalised with ImageNet's.",
    )
