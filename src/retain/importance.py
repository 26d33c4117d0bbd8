"""Importance: how much each weight matters, as a mapping from its name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from retain import arguments, files
from retain.errors import FileError, InputError
from retain.header import Fields, shown
from retain.lazily import MadeWhenAsked
from retain.summary import Summary


class Importance(Mapping[str, Tensor]):
    """Parameter name -> Ω, the mean over `samples` samples, shaped like the parameter.

    Attributes:
        samples: how many samples the means are over; for a sum over tasks, how many in all.
        routes: parameter name -> how its gradients were obtained ("linear", "loop", …), if known.
        squared_norm: the mean of ‖F(x)‖² over the samples, if known; for a sum over tasks, the sum
            of their means. Ω grows with it when the outputs are scaled.
        precisions: in what Ω was computed, such as "float32 (TF32 convolutions)"; several if
            batches, parts or tasks differ, none if it is not known.

    Examples:
        >>> import torch, retain
        >>> monday = retain.Importance({"weight": torch.tensor([1.0, 3.0])}, samples=100)
        >>> friday = retain.Importance({"weight": torch.tensor([5.0, 3.0])}, samples=300)
        >>> retain.Importance.pool([monday, friday])["weight"]  # one task: the mean over samples
        tensor([4., 3.])
        >>> (monday + friday)["weight"]  # two tasks: the sum
        tensor([6., 6.])
    """

    def __init__(
        self,
        means: Mapping[str, Tensor],
        samples: int,
        routes: Mapping[str, str] | None = None,
        squared_norm: float | None = None,
        precisions: Iterable[str] = (),
    ) -> None:
        self._means = means if isinstance(means, MadeWhenAsked) else _checked(means)
        self.samples = int(arguments.whole("samples", samples, least=0))
        self.routes = arguments.named_texts("routes", {} if routes is None else routes)
        self.squared_norm: float | None = arguments.optional(
            arguments.number, "squared_norm", squared_norm, least=0
        )
        self.precisions = tuple(dict.fromkeys(arguments.texts("precisions", precisions)))

    def __getitem__(self, name: str) -> Tensor:
        return self._means[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._means)

    def __len__(self) -> int:
        return len(self._means)

    def __repr__(self) -> str:
        weights = sum(omega.numel() for omega in self.values())
        return f"Importance({len(self)} parameters, {weights:,} weights, {self.samples:,} samples)"

    def __add__(self, other: Importance) -> Importance:
        """The sum over tasks (MAS): Ω of both where both have it; `samples` are added as well.

        A parameter that only one of them knows, such as a later head, keeps what it has.

        Raises:
            InputError: the same name with two shapes.
        """
        if not isinstance(other, Importance):
            return NotImplemented
        _refuse_misshapen([self, other])
        total = {**self, **other}
        for name in self.keys() & other.keys():
            # Ω = Σ_tasks Ω_task
            total[name] = self[name] + other[name].to(self[name])
        norm = combined((self.squared_norm, 1.0), (other.squared_norm, 1.0))
        routes = {**self.routes, **other.routes}
        every = (*self.precisions, *other.precisions)
        return Importance(total, self.samples + other.samples, routes, norm, every)

    @classmethod
    def pool(cls, parts: Iterable[Importance]) -> Importance:
        """The mean over all samples of all parts: shards, devices, days of one task.

        Raises:
            InputError: no parts, parts of different models, or parts without samples.

        Examples:
            >>> first, second = (retain.MAS(model).observe(loader).observed for _ in range(2))
            >>> retain.Importance.pool([first, second]).samples
            64
        """
        if not isinstance(parts, Iterable) or isinstance(parts, Tensor):
            raise InputError(f"parts={shown(parts)}; expected some Importance.")
        given = list(parts)
        wrong = sorted({type(part).__name__ for part in given if not isinstance(part, Importance)})
        if not given or wrong:
            raise InputError(
                f"Importance.pool got {', '.join(wrong) or 'nothing'}; expected some Importance."
            )
        every = {name for part in given for name in part}
        partial = sorted(name for name in every if any(name not in part for part in given))
        if partial:
            raise InputError(
                f"Only parts of one model can be pooled; some lack: {', '.join(partial)}. "
                "For different tasks of a growing model, add them with +."
            )
        _refuse_misshapen(given)
        samples = sum(part.samples for part in given)
        if samples == 0:
            raise InputError("Importance.pool got no samples: every part has samples=0.")
        # Ω = Σᵢ nᵢ Ωᵢ / Σᵢ nᵢ
        means = {
            name: sum(
                (part[name].to(omega) * (part.samples / samples) for part in given[1:]),
                start=omega * (given[0].samples / samples),
            )
            for name, omega in given[0].items()
        }
        routes = {name: route for part in given for name, route in part.routes.items()}
        norm = combined(*((part.squared_norm, part.samples / samples) for part in given))
        precisions = [precision for part in given for precision in part.precisions]
        return cls(means, samples, routes, norm, precisions)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to `path`, a safetensors file keyed by parameter name.

        Raises:
            FileError: it cannot be written; what was there is untouched.
            InputError: it holds NaN, infinity or negative numbers, which are no Ω.

        Examples:
            >>> retain.MAS(model).observe(loader).observed.save("omega.safetensors")
        """
        bad = not_importance(self)
        if bad:
            raise InputError(f"No importance to save: {bad}.")
        header = {
            "samples": self.samples,
            "routes": self.routes,
            "names": list(self),
            "squared_norm": self.squared_norm,
            "precisions": list(self.precisions),
        }
        files.write(path, "importance", self._means, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote to `path`, on the CPU.

        Raises:
            FileError: missing, truncated, foreign, or from a newer version.

        Examples:
            >>> retain.MAS(model).observe(loader).observed.save("omega.safetensors")
            >>> sorted(retain.Importance.load("omega.safetensors"))
            ['0.bias', '0.weight', '2.bias', '2.weight']
        """
        return cls.of_file(path, *files.read(path, "importance"))

    @classmethod
    def of_file(
        cls, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
    ) -> Self:
        """The same, of what was read from `path` already.

        Raises:
            FileError: it is no importance.

        Examples:
            >>> retain.MAS(model).observe(loader).observed.save("omega.safetensors")
            >>> read = retain.files.read("omega.safetensors", "importance")
            >>> retain.Importance.of_file("omega.safetensors", *read).samples
            32
        """
        fields = Fields(arguments.instance("header", header, Mapping, "a mapping"))
        arguments.instance("tensors", tensors, Mapping, "a mapping from names to tensors")
        names, samples = fields.texts("names"), fields.count("samples")
        routes = fields.named_texts("routes")
        norm = fields.optional_number("squared_norm") if "squared_norm" in header else None
        precisions = fields.texts("precisions") if "precisions" in header else ()
        try:
            fields.finish()
            if set(names) != tensors.keys():
                raise ValueError(f"it names {len(names)} tensors and holds {len(tensors)}")
        except ValueError as error:
            raise FileError(f"{path} has a damaged header: {error}.") from error
        bad = not_importance(tensors)
        if bad:
            raise FileError(f"{path} holds no importance: {bad}. It is damaged; make it again.")
        return cls({name: tensors[name] for name in names}, samples, routes, norm, precisions)

    def to(self, device: torch.device | str) -> Importance:
        """The same on another device.

        Raises:
            InputError: one that is not here.

        Examples:
            >>> retain.MAS(model).observe(loader).observed.to("cpu").samples
            32
        """
        arguments.place("device", device)
        means = {name: omega.to(device) for name, omega in self.items()}
        return Importance(means, self.samples, self.routes, self.squared_norm, self.precisions)

    def summary(self) -> Summary:
        """A table with a row per parameter: mean, share of the total, largest, route; print it.

        Below it stands in what precision Ω was computed, if that is known.

        Examples:
            >>> summary = retain.MAS(model).observe(loader).observed.summary()
            >>> "computed in float32" in str(summary)
            True
        """
        return Summary.of(self, self.samples, self.routes, self.precisions)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw Ω by layer into `path` (the suffix says the format: .png, .svg, .pdf); returns it.

        Raises:
            MissingExtraError: matplotlib is not installed.
            InputError: there is nothing to draw, or a suffix that is not a picture's.

        Examples:
            >>> retain.MAS(model).observe(loader).observed.plot("omega.png").name
            'omega.png'
        """
        return self.summary().plot(path)


def _checked(means: object) -> dict[str, Tensor]:
    """Tensors by name that can be Ω; their numbers are not looked at."""
    if not isinstance(means, Mapping):
        raise InputError(f"means={shown(means)}; expected a mapping from names to tensors.")
    wrong = [f"the name {shown(name)}" for name in means if not isinstance(name, str)]
    wrong += [
        f"{name!r} {why}" for name, tensor in means.items() if (why := arguments.unusable(tensor))
    ]
    if wrong:
        raise InputError(
            f"Importance got {', '.join(wrong)}; expected dense tensors of floating point by name."
        )
    return dict(means)


def combined(*weighted: tuple[float | None, float]) -> float | None:
    """Σᵢ wᵢ aᵢ over pairs (aᵢ, wᵢ); None where a number that counts is not known."""
    total = 0.0
    for known, weight in weighted:
        if weight and known is None:
            return None
        total += weight * known if known is not None else 0.0
    return total


def is_positive(tensor: Tensor) -> bool:
    """Whether all numbers are ≥ 0; those of 8 bits cannot be compared as they are."""
    comparable = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return bool((comparable >= 0).all())


def not_importance(tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with tensors that should be Ω, by name; "" where all are finite and ≥ 0."""
    wrong = []
    for name, omega in tensors.items():
        if why := arguments.unusable(omega):
            wrong.append(f"{name} {why}")
        elif not bool(omega.isfinite().all()):
            wrong.append(f"{name} has NaN or infinity")
        elif not is_positive(omega):
            wrong.append(f"{name} has negative numbers")
    return ", ".join(wrong)


def _refuse_misshapen(parts: list[Importance]) -> None:
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for part in parts:
        for name, omega in part.items():
            shapes.setdefault(name, set()).add(tuple(omega.shape))
    wrong = [
        f"{name} ({' and '.join(map(str, sorted(s)))})" for name, s in shapes.items() if len(s) > 1
    ]
    if wrong:
        raise InputError(f"Not of the same model; shapes differ: {', '.join(wrong)}.")
