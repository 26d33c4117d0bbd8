"""Devices, types and memory: what PyTorch refuses is said so that one can act on it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import retain
from retain.errors import InputError, ModelError, OutOfMemoryError, RetainError

KINDS = [retain.MAS, retain.LocalMAS, retain.EWC]
X = torch.randn(6, 4)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")


class Net(nn.Module):
    """Two layers, with something between them that may go wrong."""

    def __init__(self, between: Callable[[Tensor], Any] = lambda h: None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        self.between(h)
        out: Tensor = self.last(h)
        return out


def _raising(text: str) -> Callable[[Tensor], None]:
    def fail(h: Tensor) -> None:
        raise RuntimeError(text)

    return fail


def _raising_backward(text: str) -> Callable[[Tensor], None]:
    def watch(h: Tensor) -> None:
        if h.requires_grad:
            h.register_hook(_raising(text))

    return watch


def _refused(memory: Any, batch: Any, error: type[RetainError], said: str) -> None:
    """With what was observed before still there, and usable."""
    between, memory.model.between = memory.model.between, lambda h: None
    before = memory.observed.samples
    memory.observe([X], progress=False)
    memory.model.between = between
    with pytest.raises(error, match=said) as caught:
        memory.observe([batch], progress=False)
    assert str(caught.value).startswith("Batch 1 (the first is 1): ")
    assert "samples observed before it are kept" in str(caught.value)
    assert memory.observed.samples == before + 6
    memory.model.between = lambda h: None
    assert memory.observe([X], progress=False).consolidate().importance.samples == before + 12


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_batch_without_numbers(kind: Any) -> None:
    batch = (X.to("meta"), torch.zeros(6, dtype=torch.long))
    _refused(kind(Net()), batch, InputError, "The batch holds tensors on the meta device")


class Shifted(Net):
    """A buffer is somewhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(4, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.shift)  # type: ignore[operator]


def _refused_before_it_runs(memory: Any, batch: Any, error: type[RetainError], said: str) -> None:
    """With nothing counted, the model as it was, and what comes after it on one device is fine."""
    ran: list[object] = []
    before = memory.observed.samples
    hook = memory.model.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(error, match=said):
        memory.observe([batch], progress=False)
    assert not ran
    assert memory.observed.samples == before
    hook.remove()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_buffer_on_another_device(kind: Any) -> None:
    said = r"several devices.*elsewhere are shift \(meta\).*one dev"
    _refused_before_it_runs(kind(Shifted()), X, ModelError, said)


class Elsewhere(nn.Parameter):
    """As on a second device that there is not here."""

    device = torch.device("cuda", 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_weights_on_two_devices(kind: Any) -> None:
    memory = kind(Net())
    memory.observe([X], progress=False)
    here, memory.model.last.bias = memory.model.last.bias, Elsewhere(torch.zeros(3))
    said = "several devices: on cpu first.weight.*; on cuda:1 last.bias. .* one device"
    _refused_before_it_runs(memory, X, ModelError, said)
    memory.model.last.bias = here
    assert memory.observe([X], progress=False).observed.samples == 12


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_frozen_weights_without_numbers(kind: Any) -> None:
    """A convolution would take what lies in memory for them."""
    frozen = nn.Conv1d(1, 1, 1).requires_grad_(False)
    model = nn.Sequential(nn.Linear(4, 5), nn.Unflatten(1, (1, 5)), frozen.to("meta"), nn.Flatten())
    said = r"several devices.*on cpu; elsewhere are 2\.weight \(meta\), 2\.bias \(meta\)"
    _refused_before_it_runs(kind(model), X, ModelError, said)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_weights_that_a_hook_loads(kind: Any) -> None:
    """As accelerate does it where a model is larger than the device."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3).requires_grad_(False))
    last, loaded = model[2], retain.MAS(model).observe([X], progress=False).observed
    kept = {name: p.detach().clone() for name, p in last.named_parameters()}

    def load(module: nn.Module, _given: Any) -> None:
        for name, values in kept.items():
            module.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def unload(module: nn.Module, *_: Any) -> None:
        for name, values in kept.items():
            gone = nn.Parameter(values.to("meta"), requires_grad=False)
            module.register_parameter(name, gone)

    unload(last)
    last.register_forward_pre_hook(load)
    last.register_forward_hook(unload)
    found = kind(model).observe([X], progress=False).observed
    assert found.samples == 6
    if kind is retain.MAS:
        for name, omega in found.items():
            torch.testing.assert_close(omega, loaded[name])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_batches_are_put_where_the_model_is_before_it_runs(kind: Any) -> None:
    class Far(Tensor):
        device = torch.device("meta")

        def to(self, *args: Any, **kwargs: Any) -> Any:
            moved.append(1)
            return torch.Tensor(X)

    moved: list[object] = []
    ran: list[tuple[bool, type]] = []
    model = Net()
    model.register_forward_pre_hook(lambda _, given: ran.append((bool(moved), type(given[0]))))
    kind(model).observe([X.as_subclass(Far)], progress=False)
    assert set(ran) == {(True, Tensor)}
    _refused_before_it_runs(kind(Net()), X.to("meta"), InputError, "tensors on the meta device")


ON_TWO = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
)


@pytest.mark.parametrize("where", [_raising, _raising_backward])
def test_tensors_on_two_devices(where: Any) -> None:
    said = "several devices.*forward.* or output=… makes tensors elsewhere"
    _refused(retain.MAS(Net(where(ON_TWO))), X, ModelError, said)


@pytest.mark.parametrize(
    "text",
    [
        ON_TWO,
        "Tensor on device meta is not on the expected device cpu!",
        "Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same"
        " or input should be a MKLDNN tensor and weight is a dense tensor: not on the same device",
        "indices should be either on cpu or on the same device as the indexed tensor (cuda:1)",
    ],
)
def test_however_it_is_put(text: str) -> None:
    _refused(retain.MAS(Net(_raising(text))), X, ModelError, "several devices")


def test_a_model_on_two_devices() -> None:
    """Weights without numbers are refused before; of others the first device is taken."""
    model = Net()
    model.last.to("meta")
    with pytest.raises(ModelError, match=r"meta device.*last\.weight"):
        retain.MAS(model).observe([X], progress=False)


@pytest.mark.parametrize("where", [_raising, _raising_backward])
@pytest.mark.parametrize(
    "text",
    [
        "\"max_pool3d_backward\" not implemented for 'Half'",
        "Could not run 'aten::scatter' with arguments from the 'CUDA' backend.",
    ],
)
def test_a_layer_without_a_kernel(text: str, where: Any) -> None:
    said = r"cannot be computed in this type.*weights are float32, on cpu.*float\(\)"
    _refused(retain.MAS(Net(where(text))), X, ModelError, said)


def test_a_type_that_cannot_be_computed_in() -> None:
    model = Net().to(torch.float8_e4m3fn)
    with pytest.raises(ModelError, match="weights are float8_e4m3fn"):
        retain.MAS(model).observe([X.to(torch.float8_e4m3fn)], progress=False)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_batch_of_another_type(kind: Any) -> None:
    said = "The weights are float32, the batch float64.*or observe under torch.autocast"
    _refused(kind(Net()), X.double(), InputError, said)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_models_in_half_precision_work(kind: Any, dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*one sample at a time")
        memory = kind(model).observe([X.to(dtype)], progress=False)
    assert all(omega.dtype == torch.float32 for omega in memory.observed.values())


# ---- memory ----


class Greedy:
    """Fits so many samples, and no more."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, [0]

    def __call__(self, h: Tensor) -> None:
        self.seen.append(len(h))
        if len(h) > self.most:
            raise FULL


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_does_not_fit_is_halved(kind: Any) -> None:
    greedy = Greedy(2)
    memory = kind(Net(greedy), **({"fisher": "exact"} if kind is retain.EWC else {}))
    with pytest.warns(UserWarning, match=r"Out of memory.*2\.00 GiB.*going on with 3") as told:
        memory.observe([X], progress=False)
    assert {one.filename for one in told if "Out of" in str(one.message)} == {__file__}
    memory.model.between = lambda h: None
    whole = kind(memory.model, **({"fisher": "exact"} if kind is retain.EWC else {})).observe([X])
    for name, omega in memory.observed.items():
        torch.testing.assert_close(omega, whole.observed[name])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_one_sample_that_does_not_fit(kind: Any) -> None:
    said = r"Even one sample does not fit.*2\.00 GiB.*Nothing of this batch"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Out of memory")
        _refused(kind(Net(Greedy(0))), X, OutOfMemoryError, said)


class Short(TorchDispatchMode):
    """There is no memory for one operation, the so many-th."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = [one for one in func._schema.returns if "Tensor" in str(one.type)]
        if made and not any(one.alias_info for one in made):
            self.count += 1  # it takes memory of its own
            if self.count == self.at:
                raise FULL
        return func(*args, **(kwargs or {}))


class Renormed(nn.Module):
    """A forward writes to its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(9, 4, max_norm=0.5), nn.Linear(4, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.inner(self.table(tokens))).mean(1))
        return out


MODELS = {
    "convolutional": lambda: (
        nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))
        ),
        torch.rand(9, 1, 5, 5),
    ),
    "written to": lambda: (Renormed(), torch.randint(9, (9, 3))),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("kind", [retain.MAS, retain.LocalMAS])
@pytest.mark.parametrize("name", MODELS)
def test_wherever_memory_runs_out(name: str, kind: Any, later: bool) -> None:
    """The same sums or an error with the figure; the model as it was, and the next one works."""
    model, x = MODELS[name]()
    expected = kind(model).observe([x], progress=False).observed
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def begun() -> Any:
        memory = kind(model)
        return memory.observe([x], progress=False) if later else memory

    with Short() as mode:
        memory = begun()
        before = mode.count
        memory.observe([x], progress=False)
    went_on = 0
    for at in range(1, mode.count - before, (mode.count - before) // 8):
        memory, counted, said = begun(), 9 * later, ""
        try:
            with Short(at):
                memory.observe([x], progress=False)
            counted += 9
            went_on += 1
        except OutOfMemoryError as error:
            said = str(error)
        told = re.search(r"2\.00 GiB.*?(\d+) samples (?:are counted|observed before)", said)
        assert memory.observed.samples == (int(told[1]) if told else counted), said
        now = model.state_dict()
        assert not [key for key in state if not torch.equal(now[key], state[key])]
        assert not any(module._forward_hooks for module in model.modules())
        assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
        memory.observe([x], progress=False)
        for key, omega in memory.observed.items():
            torch.testing.assert_close(omega, expected[key], rtol=1e-4, atol=1e-6)
    assert went_on


class Huge(Tensor):
    """A batch on another device than the model's, on which it does not fit."""

    device = torch.device("meta")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        raise FULL


def test_a_batch_that_cannot_even_be_moved() -> None:
    huge = X.as_subclass(Huge)
    _refused(retain.MAS(Net()), huge, OutOfMemoryError, r"2\.00 GiB.*Give smaller batches")
