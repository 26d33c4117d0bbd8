"""A model that serves requests from eight threads while it is observed; models borrowed by four.

python -m tests.hostile --only serving --only borrowing --long
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import retain
from retain.borrowed import borrowed
from tests.hostile.values import Tally

SERVING, BORROWING = 8, 4
PLACES = (
    (torch.autograd.graph.saved_tensors_hooks, ("__enter__", "__exit__")),
    (torch.utils.checkpoint.CheckpointFunction, ("apply",)),
    (torch._VF, ("lstm", "gru", "rnn_tanh", "rnn_relu")),
)


class Served(nn.Module):
    """Recurrent, checkpointed, with dropout and batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.cell, self.last = nn.GRU(6, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.norm(torch.relu(self.first(x))))
        hidden = torch.utils.checkpoint.checkpoint(torch.tanh, hidden, use_reentrant=False)
        return self.last(self.cell(hidden.unsqueeze(1))[0].squeeze(1))


# ---- serving ----


def try_serving(count: int, seed: int, folder: Path) -> Tally:
    """So many requests in each of four forms: answers, counts, Ω, and what is left on the model."""
    tally, forms = Tally(), (_around, _for_each, _new_for_each, _nested)
    for number, form in enumerate(forms):
        torch.manual_seed(seed + number)
        load = Load(max(count // len(forms) // SERVING, 1), tally)
        left = _left_on(load.model)
        form(load)
        if _left_on(load.model) != left:
            tally.surprise("left behind", form.__name__)
    return tally


class Load:
    """Eight threads that ask a model, each with inputs of its own, so often."""

    def __init__(self, times: int, tally: Tally) -> None:
        self.model = Served().eval()
        self.times, self.tally, self.lock = times, tally, threading.Lock()
        self.x = [torch.randn(4, 5) for _ in range(SERVING)]
        with torch.no_grad():
            self.answers = [self.model(each) for each in self.x]

    def serve(self, block: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """Ask, each request within a block of its own; whether the answers are right."""
        in_threads(lambda thread: self._ask(thread, block), SERVING, self.tally)

    def _ask(self, thread: int, block: Callable[[], AbstractContextManager[Any]]) -> None:
        right = 0
        with torch.no_grad():
            for _ in range(self.times):
                with block():
                    right += torch.equal(self.model(self.x[thread]), self.answers[thread])
        with self.lock:
            self.tally["tried"] += self.times
            self.tally["accepted unchanged"] += right
            self.tally["accepted with another value"] += self.times - right

    def count(self, memory: Any) -> None:
        """Every batch was counted once, and Ω is what it is when they come one after another."""
        alone = retain.LocalMAS(self.model)
        for each in self.x:
            alone.observe(each, progress=False)
        samples = self.times * sum(len(each) for each in self.x)
        if memory.observed.samples != samples:
            self.tally.surprise("lost", f"{memory.observed.samples} of {samples} samples")
        for name, omega in alone.observed.items():
            if not torch.allclose(memory.observed[name], omega, rtol=1e-4, atol=1e-7):
                self.tally.surprise("accepted with another value", f"Ω of {name}")


def _around(load: Load) -> None:
    memory = retain.LocalMAS(load.model)
    with memory.observing():
        load.serve()
    load.count(memory)


def _for_each(load: Load) -> None:
    memory = retain.LocalMAS(load.model)
    load.serve(memory.observing)
    load.count(memory)


def _nested(load: Load) -> None:
    one, other = retain.LocalMAS(load.model), retain.LocalMAS(load.model)

    @contextmanager
    def both() -> Iterator[None]:
        first = other.observing()
        first.__enter__()
        with one.observing():  # which is left after the one that was entered before it
            yield
            first.__exit__(None, None, None)

    load.serve(both)
    load.count(one)
    load.count(other)


def _new_for_each(load: Load) -> None:
    def block() -> AbstractContextManager[Any]:
        return retain.LocalMAS(load.model).observing()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # calls of other threads that run on when it is left
        load.serve(block)


# ---- borrowing ----


def try_borrowing(count: int, seed: int, folder: Path) -> Tally:
    """So many times borrowed, by four threads, one model and several; nothing stays changed."""
    tally, dice = Tally(), random.Random(seed)
    before = _in_torch()
    for shared in (True, False):
        torch.manual_seed(seed)
        models = [Served()] * BORROWING if shared else [Served() for _ in range(BORROWING)]
        for model in models:
            model.norm.bias.grad = torch.ones(6)
        states = [_state_of(model) for model in models]
        waits = [dice.uniform(0, 1e-3) for _ in range(BORROWING)]
        times = max(count // 2 // BORROWING, 1)
        _borrow(models, waits, times, tally)
        for model, state in zip(models, states, strict=True):
            if not _same(_state_of(model), state):
                tally.surprise("lost", "a model is not given back as it was")
    if _in_torch() != before:
        tally.surprise("left behind", "something of torch is replaced")
    return tally


def _borrow(models: list[Served], waits: list[float], times: int, tally: Tally) -> None:
    x, lock = torch.randn(4, 5), threading.Lock()

    def work(thread: int) -> None:
        model, right = models[thread], 0
        for _ in range(times):
            threading.Event().wait(waits[thread])
            with borrowed(model):
                calm = not any(m.training for m in model.modules())
                right += calm and torch.equal(model(x), model(x))
        with lock:
            tally["tried"] += times
            tally["accepted unchanged"] += right
            tally["accepted with another value"] += times - right

    in_threads(work, BORROWING, tally)


def in_threads(work: Callable[[int], None], threads: int, tally: Tally) -> None:
    """Run `work(index)` in threads that begin together; what one raises is a surprise."""
    barrier = threading.Barrier(threads)

    def run(index: int) -> None:
        try:
            barrier.wait()
            work(index)
        except BaseException as error:
            tally.surprise("foreign traceback", repr(error))

    running = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def _left_on(model: nn.Module) -> Any:
    return [
        (sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]


def _state_of(model: Served) -> list[Any]:
    modes = [module.training for module in model.modules()]
    grads = [p.grad for p in model.parameters()]
    return [modes, _left_on(model), *grads, *(b.clone() for b in model.buffers())]


def _same(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(one, other, strict=True)
    )


def _in_torch() -> Any:
    flags = (torch.backends.cudnn.enabled, torch._C._get_mkldnn_enabled())
    return [[vars(owner).get(name) for name in names] for owner, names in PLACES], flags
