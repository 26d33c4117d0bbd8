"""What a method is: fine-tuning, and the moments in which it does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.models import TaskNetwork
from retain.tasks import Minibatch, Scenario, TaskSequence

ImportanceData = Literal["train", "test", "train+test"]
CPU = torch.device("cpu")
Form = Literal["gradient", "proximal", "adaptive"]


@dataclass(frozen=True)
class Setting:
    """What a method is told about the run that it is part of.

    Attributes:
        make_optimizer: the run's optimizer for given parameters, anew.
        batch_size: samples per step of training.
        device: where the network and the batches live.
        scenario: "domain-incremental" tasks share one head, which is then protected as well.
        importance_on: the data that importance is computed on; their labels are never used by it.
        importance_classes: names of classes; of a task that has some of them, importance is
            computed on those alone.
        pass_size: samples per batch where nothing is trained (recorded outputs).
        importance_size: samples per batch where importance is computed.
        seed: of the run.
    """

    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam
    batch_size: int = 128
    device: torch.device = CPU
    scenario: Scenario = "task-incremental"
    importance_on: ImportanceData = "train"
    importance_classes: frozenset[str] = frozenset()
    pass_size: int = 500
    importance_size: int = 500
    seed: int = 0

    @property
    def shared(self) -> list[str]:
        """Patterns of the names of the parameters that all tasks use."""
        return (
            ["backbone.*", "heads.*"] if self.scenario == "domain-incremental" else ["backbone.*"]
        )


OptionsT = TypeVar("OptionsT")


class Method(Generic[OptionsT]):
    """Fine-tuning as a sequence of moments, in the order in which the runner calls them.

    For every task: `begin`, then epoch after epoch `batches` → `loss` → a step of the optimizer
    inside `protecting`, then `end`. A method overrides the moments in which it differs. After
    `end` the network is the one that is measured.

    Attributes:
        name: what the method is called on the command line and in files.
        title: what tables and pictures call it, as its paper does.
        Options: its frozen dataclass of defaults.
        stores: what it keeps, in a sentence.
        needs: what must be at hand from before the task, beside the network itself.
        knob: the option that trades what is old for what is new, if there is one.
        holds_weights: whether it holds weights near old values or merges them, so that batch-norm
            statistics that drift would undo its work.
        chooses_data: whether `importance_on` says what its importance is computed on.
        first_as_finetune: whether it learns the first task with the very steps of fine-tuning, so
            that one training serves all such methods.
        protects_from_outside: whether it leaves the loss and the batches as they are, so that it
            can protect a training that is not the runner's.
        merges: whether `end` puts other weights into the network, which are then what counts.
        sweep: values of the knob to compare, where it is not λ and not the network's to say.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Options: ClassVar[type[Any]]
    stores: ClassVar[str]
    needs: ClassVar[str]
    knob: ClassVar[str | None] = None
    holds_weights: ClassVar[bool] = False
    chooses_data: ClassVar[bool] = False
    first_as_finetune: ClassVar[bool] = True
    protects_from_outside: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    sweep: ClassVar[tuple[float, ...]] = ()

    def __init__(self, network: TaskNetwork, options: OptionsT, setting: Setting) -> None:
        self.network = network
        self.options = options
        self.setting = setting

    @classmethod
    def has_strength(cls) -> bool:
        """Whether there is a λ to set."""
        return "strength" in {f.name for f in fields(cls.Options)}

    @classmethod
    def has_form(cls) -> bool:
        """Whether its penalty is quadratic and can take one form or another."""
        return "form" in {f.name for f in fields(cls.Options)}

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Prepare for task `index`, whose head is already there; no optimizer exists yet."""

    def protecting(self, index: int, optimizer: Optimizer) -> AbstractContextManager[Any]:
        """A context in which every step of `optimizer` is protected."""
        return nullcontext()

    def batches(
        self, index: int, sequence: TaskSequence, order: torch.Generator
    ) -> Iterator[Minibatch]:
        """One epoch of training batches, in an order drawn from `order`."""
        yield from sequence.tasks[index].train.batches(
            self.setting.batch_size, shuffle=order, train=True, device=self.setting.device
        )

    @classmethod
    def steps(cls, index: int, sequence: TaskSequence, batch_size: int) -> int:
        """How many batches an epoch of `batches` has."""
        return -(-len(sequence.tasks[index].train) // batch_size)

    def loss(self, batch: Minibatch) -> Tensor:
        """The loss to take a step on: cross-entropy on the current task's head."""
        return F.cross_entropy(self.network(batch.inputs), batch.labels)

    def end(self, index: int, sequence: TaskSequence) -> None:
        """What is done once task `index` is learned: importance, merging, an auto-encoder."""

    def resistance(self, start: Mapping[str, Tensor]) -> float | None:
        """What the penalty comes to with λ = 1, at the weights as they are; None without one.

        Args:
            start: name -> weight before the task.
        """
        return None

    def importance(self) -> Mapping[str, Tensor] | None:
        """Ω by parameter, for methods that have one."""
        return None

    def set_strength(self, strength: float) -> None:
        """Go on with another λ."""
        options: Any = self.options
        self.options = replace(options, strength=strength)

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """The tensors that the method keeps beside the network, by kind."""
        return {}

    def memory_bytes(self) -> dict[str, int]:
        """Bytes kept for the sake of the next task, by kind: the network ("model") and `kept`."""
        network = [*self.network.parameters(), *self.network.buffers()]
        return {
            kind: allocated(tensors) for kind, tensors in {"model": network, **self.kept()}.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """What the next task needs to know beside the network, by names of its own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up where `state_dict` was taken; the network has been restored already."""

    def passes(self, index: int, sequence: TaskSequence) -> Iterator[Minibatch]:
        """Once through the data that importance is computed on, as they look at test time."""
        task = sequence.tasks[index]
        named = [
            c for c, name in enumerate(task.classes) if name in self.setting.importance_classes
        ]
        for split in self.setting.importance_on.split("+"):
            examples = task.train if split == "train" else task.test
            if named:
                examples = examples.select(
                    torch.isin(examples.labels, torch.tensor(named)).nonzero().flatten()
                )
            if len(examples):
                size, device = self.setting.importance_size, self.setting.device
                yield from examples.batches(size, device=device)


def allocated(tensors: Iterable[Tensor]) -> int:
    """Bytes that `tensors` occupy; storage that several of them share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of `state` whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}


def numbered(state: Mapping[str, Tensor], group: str) -> list[dict[str, Tensor]]:
    """The parts `group.0.…`, `group.1.…`, … of `state`, as far as they go."""
    parts: list[dict[str, Tensor]] = []
    while part := under(state, f"{group}.{len(parts)}."):
        parts.append(part)
    return parts


def drawn_generator() -> torch.Generator:
    """A new generator, seeded from the global random state, for the order of an extra pass."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
