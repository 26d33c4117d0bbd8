"""From a specification such as `mlp` or `resnet18` to a network with heads for tasks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from retain import arguments
from retain.errors import ConfigError, InputError, ModelError
from retain.header import shown
from retain.models.adapter import adapter_for, example
from retain.models.head import find_head, without_head
from retain.models.named import named_model
from retain.models.network import TaskNetwork
from retain.models.seeded import seeded
from retain.models.small import MLP, SmallConv
from retain.models.weights import load_weights
from retain.saying import warn
from retain.tasks.code_files import USAGE as CODE_USAGE
from retain.tasks.code_files import is_code, result_from_file

SMALL: dict[str, type[MLP] | type[SmallConv]] = {"mlp": MLP, "cnn": SmallConv}
DEFAULT_WEIGHTS = "default"
# Networks made for photographs see nothing in less; smaller images are enlarged.
SMALLEST_SIDE = 32


def build_model(
    spec: str,
    *,
    input_shape: tuple[int, ...],
    seed: int,
    weights: str | Path | None = None,
    shared_head: bool = False,
    input_dtype: torch.dtype = torch.float32,
) -> TaskNetwork:
    """The network that `spec` names, without a head yet; a warning tells of each of its `notes`.

    Args:
        spec: `mlp`, `cnn`, a torchvision or timm name, or `path/to/file.py:function`.
        input_shape: of one input, without the batch dimension.
        seed: of the initialisation, which leaves the global random state alone.
        weights: a file of weights, or "default" for torchvision's or timm's own.
        shared_head: one head for all tasks (domain-incremental).
        input_dtype: of inputs; of whole numbers where they are tokens.

    Raises:
        ConfigError: an unknown name, a model file that does not work, or weights it cannot have.
        ModelError: no head can be found, or the inputs cannot be made to suit it.
        FileError: weights that are missing, or do not fit (everything that does not is listed).
    """
    arguments.text("spec", spec)
    arguments.instance("input_dtype", input_dtype, torch.dtype, "a type such as torch.float32")
    arguments.whole("seed", seed)
    arguments.flag("shared_head", shared_head)
    if not isinstance(input_shape, (tuple, list)) or not input_shape:
        raise InputError(f"input_shape={shown(input_shape)}; expected whole numbers of at least 1.")
    for size in input_shape:
        arguments.whole("input_shape", size, least=1)
    if weights is not None:
        arguments.path("weights", weights, of='a file, or "default"')
    with seeded(seed):
        if spec in SMALL:
            if not input_dtype.is_floating_point:
                raise ConfigError(
                    f"{spec} is for images, and the inputs are whole numbers "
                    f"({str(input_dtype).removeprefix('torch.')}). Give a model of your own: "
                    f"--model {CODE_USAGE}"
                )
            network = _small(spec, input_shape, seed, weights, shared_head)
        else:
            network = _with_head_taken_off(
                spec, input_shape, seed, weights, shared_head, dtype=input_dtype
            )
    for note in network.notes:
        warn(note)
    return network


def model_from_file(spec: str) -> nn.Module:
    """What the function in `path/to/file.py:function` returns, called without arguments.

    Raises:
        ConfigError: the file or the function is not there, or fails.
        ModelError: it returns something other than an `nn.Module`.
    """
    model = result_from_file(spec, "model")
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returns a {type(model).__name__}; expected an nn.Module.")
    return model


def _small(
    spec: str,
    input_shape: tuple[int, ...],
    seed: int,
    weights: str | Path | None,
    shared_head: bool,
) -> TaskNetwork:
    if weights == DEFAULT_WEIGHTS:
        raise ConfigError(f"There are no default weights of {spec}; give a file, or leave it out.")
    backbone = SMALL[spec](input_shape)
    notes = load_weights(backbone, Path(weights)) if weights is not None else ()
    return TaskNetwork(
        backbone, backbone.feature_size, shared_head=shared_head, seed=seed, notes=notes
    )


def _with_head_taken_off(
    spec: str,
    input_shape: tuple[int, ...],
    seed: int,
    weights: str | Path | None,
    shared_head: bool,
    *,
    dtype: torch.dtype,
) -> TaskNetwork:
    model, at_least, notes = _made(spec, weights == DEFAULT_WEIGHTS)
    adapter, adapted = adapter_for(model, spec, input_shape, at_least=at_least, dtype=dtype)
    inputs = adapter(example(input_shape, dtype))
    head = find_head(model, spec, inputs)
    if weights is not None and weights != DEFAULT_WEIGHTS:
        notes += load_weights(model, Path(weights).expanduser(), head=head)
    backbone, feature_size = without_head(model, head)
    if next(backbone.parameters(), None) is None:
        raise ModelError(
            f"{spec} has nothing to learn before its head {head!r}, so there is nothing that tasks "
            "could share. Put a layer before it."
        )
    network = TaskNetwork(
        backbone,
        feature_size,
        shared_head=shared_head,
        seed=seed,
        adapter=adapter,
        notes=notes + adapted,
    )
    features = network.eval().features(example(input_shape, dtype))
    if features.shape != (len(inputs), feature_size):
        raise ModelError(
            f"Without its head {head!r}, {spec} puts out shape {tuple(features.shape)}; expected "
            f"[samples, {feature_size}]. Its code must use the head as a module and nothing after."
        )
    return network.train()


def _made(spec: str, default_weights: bool) -> tuple[nn.Module, int, tuple[str, ...]]:
    """(the model with its head, the smallest side worth trying, what is worth knowing)."""
    if not is_code(spec):
        model, notes = named_model(spec, default_weights=default_weights)
        return model, SMALLEST_SIDE, notes
    if default_weights:
        raise ConfigError(
            f"There are no default weights of {spec}: load them in the function itself, or give a "
            "file of weights."
        )
    return model_from_file(spec), 1, ()
