"""Ways to Σₖ|∂‖F(xₖ)‖²/∂θ|, ours and others', and the plain pass that all are compared with.

Each way is made for a model and a batch, and is then a function to call. Those that make n × P
numbers go in chunks, of whichever size turns out to be quickest for them. All of the others take
the absolute value of every sample's gradient, and return its sum over the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import retain
from measure import Run, timed
from retain.borrowed import borrowed
from retain.per_sample import PerSample, sums_by_loop
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

HELD = (1 << 24, 1 << 26, 1 << 28, 1 << 30)  # bytes of per-sample gradients at once, to be tried


def plain(model: nn.Module, raw: Any) -> Run:
    """An ordinary forward and backward of the batch's Σₖ‖F(xₖ)‖²."""
    batch = Batch.of(raw)

    def run() -> None:
        model.zero_grad()
        squared_norms(model, batch).sum().backward()

    return run


def omega(model: nn.Module, raw: Any) -> Run:
    """`retain.MAS(model).observe`, from the second batch on."""
    memory = retain.MAS(model)
    memory.observe([raw], progress=False)
    return lambda: memory.observe([raw], progress=False)


def squares(model: nn.Module, raw: Any) -> Run:
    """The engine with power 2, as the Fisher information wants it, on the same ‖F(xₖ)‖²."""
    batch, parameters = Batch.of(raw), dict(model.named_parameters())
    engine = PerSample(model, parameters, SquaredNorm(), power=2)

    def run() -> dict[str, Tensor]:
        with borrowed(model):
            return engine(batch)

    run()
    return run


def first_omega(model: nn.Module, raw: Any) -> Run:
    """The first `observe` of a new memory, with its probe and self-check."""
    return lambda: retain.MAS(model).observe([raw], progress=False)


def loop(model: nn.Module, raw: Any) -> Run:
    """A forward and backward for every sample alone."""
    batch, parameters = Batch.of(raw), dict(model.named_parameters())
    score = SquaredNorm()
    return lambda: sums_by_loop(model, batch, parameters, score, output=first_tensor)


def vmap(model: nn.Module, raw: Any) -> Run:
    """`torch.func.vmap(grad)`, in chunks."""
    batch = Batch.of(raw)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def score(values: dict[str, Tensor], sample: Any) -> Tensor:
        args, kwargs = torch.utils._pytree.tree_map(lambda t: t[None], sample)
        returned = torch.func.functional_call(model, (values, buffers), args, kwargs)
        return first_tensor(returned).square().sum()

    each = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0))

    def run(size: int) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for part in chunks(batch, size):
            for name, gradients in each(parameters, (part.args, part.kwargs)).items():
                sums[name] += gradients.abs_().sum(0)
        return sums

    return quickest(run, model, batch)


def opacus(model: nn.Module, raw: Any) -> Run:
    """Opacus's grad sampler, in chunks."""
    from opacus import GradSampleModule

    batch, sampler = Batch.of(raw), GradSampleModule(model, loss_reduction="sum")
    sampler.train()  # it records nothing in eval mode
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        if hasattr(module, "inplace"):
            module.inplace = False  # its hooks refuse it

    def run(size: int) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for part in chunks(batch, size):
            squared_norms(sampler, part).sum().backward()
            for name, p in model.named_parameters():
                sums[name] += given(name, p, "grad_sample").abs_().sum(0)
                p.grad_sample = None
            sampler.zero_grad()
        return sums

    return quickest(run, model, batch)


def backpack(model: nn.Module, raw: Any) -> Run:
    """BackPACK's batch gradients, in chunks."""
    import backpack as package
    from backpack.extensions import BatchGrad

    batch = Batch.of(raw)
    extended = package.extend(model, use_converter=True)

    def run(size: int) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(p) for name, p in extended.named_parameters()}
        for part in chunks(batch, size):
            with package.backpack(BatchGrad()):
                squared_norms(extended, part).sum().backward()
            for name, p in extended.named_parameters():
                sums[name] += given(name, p, "grad_batch").abs_().sum(0)
                del p.grad_batch
            extended.zero_grad()
        return sums

    return quickest(run, model, batch)


def given(name: str, parameter: nn.Parameter, attribute: str) -> Tensor:
    """The per-sample gradients that a package has put on a parameter."""
    found = getattr(parameter, attribute, None)
    if not isinstance(found, Tensor):
        raise NotImplementedError(f"no per-sample gradient for {name}")
    return found


def squared_norms(model: nn.Module, batch: Batch) -> Tensor:
    """‖F(xₖ)‖² of every sample, [n]."""
    return first_tensor(batch.call(model)).flatten(1).square().sum(1)


def quickest(
    run: Callable[[int], dict[str, Tensor]], model: nn.Module, batch: Batch
) -> Callable[[], dict[str, Tensor]]:
    """The way with the size of chunk that is quickest for it: all are tried at the first call."""
    one = sum(p.numel() * p.element_size() for p in model.parameters())
    sizes = sorted({min(batch.samples, max(1, held // one)) for held in HELD})
    best: list[int] = sizes if len(sizes) == 1 else []

    def running() -> dict[str, Tensor]:
        if not best:
            run(sizes[0])
            took = {size: timed(partial(run, size)) for size in sizes}
            best.append(min(took, key=took.__getitem__))
        return run(best[0])

    return running


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of so many samples."""
    for start in range(0, batch.samples, size):
        yield batch.take(start, start + size)


# Ours and the plain pass must run; of the others it is said why they cannot.
OWN = {"plain": plain, "Ω": omega, "Ω, power 2": squares, "Ω, first call": first_omega}
OTHERS = {
    "vmap(grad)": vmap,
    "single-sample loop": loop,
    "Opacus": opacus,
    "BackPACK": backpack,
}
