"""What all jobs of a run share: the tasks, the model, the place, and what was asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from retain.experiment.config import Config
from retain.experiment.evaluate import ClassScores, importance_size, outputs, pass_size, score
from retain.experiment.machine import Autocast
from retain.experiment.progress import Watcher
from retain.experiment.recipe import recipes_from_file
from retain.experiment.train import FirstTasks, optimizer_maker
from retain.methods import ImportanceData, Setting
from retain.models import TaskNetwork, build_model
from retain.tasks import Examples, TaskOptions, TaskSequence, load_tasks
from retain.tasks.options import TaskChoices


@dataclass(frozen=True)
class Stage:
    """Tasks, device, what was asked, and who is told how far it is."""

    config: Config
    sequence: TaskSequence
    device: torch.device
    watch: Watcher
    first_tasks: FirstTasks = field(default_factory=FirstTasks)
    _at_random: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.config.recipe is not None:
            recipes_from_file.cache_clear()  # it may have been edited since another run
            recipes_from_file(self.config.recipe)()  # a wrong one is noticed before training

    @classmethod
    def of(cls, config: Config, device: torch.device, watch: Watcher) -> Stage:
        """The stage for a config, with its tasks read; its config says their scenario.

        Raises:
            ConfigError: tasks that there are not.
            FileError: data that cannot be read.
        """
        sequence = load_tasks(config.tasks, task_options(config), progress=watch.reading)
        return cls(replace(config, scenario=sequence.scenario), sequence, device, watch)

    def network(self, seed: int) -> TaskNetwork:
        """The network with its first weights, without heads."""
        return build_model(
            self.config.model,
            input_shape=self.sequence.input_shape,
            seed=seed,
            weights=self.config.weights,
            shared_head=self.sequence.scenario == "domain-incremental",
            input_dtype=self.sequence.input_dtype,
        ).to(self.device)

    def setting(self, seed: int, importance_on: ImportanceData | None) -> Setting:
        """What a method is told."""
        return Setting(
            make_optimizer=optimizer_maker(self.config, self.device),
            batch_size=self.config.batch_size,
            device=self.device,
            scenario=self.sequence.scenario,
            importance_on=importance_on or "train",
            importance_classes=frozenset(self.config.importance_classes),
            pass_size=self._pass_size(),
            importance_size=importance_size(
                self.sequence.input_shape, self.config.batch_size, self.sequence.input_dtype
            ),
            seed=seed,
        )

    def score(
        self, network: TaskNetwork, task: int, examples: Examples | None = None
    ) -> ClassScores:
        """What the network gets right of `examples`, by default the task's test split."""
        of = self.sequence.tasks[task]
        return score(
            network,
            task,
            examples or of.test,
            classes=len(of.classes),
            size=self._pass_size(),
            precision=Autocast(self.config.amp, self.device),
        )

    def outputs(
        self, network: TaskNetwork, heads: Iterable[int], examples: Examples
    ) -> tuple[list[Tensor], Tensor]:
        """Of each of these heads the outputs [n, classes] for `examples`; and their labels [n]."""
        precision = Autocast(self.config.amp, self.device)
        return outputs(network, heads, examples, size=self._pass_size(), precision=precision)

    def _pass_size(self) -> int:
        return pass_size(self.sequence.input_shape, self.sequence.input_dtype)

    def at_random(self, seed: int) -> list[float]:
        """The accuracy on each task of a network with its first weights and a new head."""
        if seed not in self._at_random:
            network = self.network(seed)
            found = []
            for index, task in enumerate(self.sequence.tasks):
                network.add_head(len(task.classes))
                found.append(self.score(network, index).accuracy)
            self._at_random[seed] = found
        return self._at_random[seed]


def task_options(config: Config) -> TaskOptions:
    """How the tasks of a config are made."""
    return TaskOptions(**{one.name: getattr(config, one.name) for one in fields(TaskChoices)})
