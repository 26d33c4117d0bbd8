"""A network with one backbone for all tasks and a head for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from retain.errors import ModelError
from retain.models.convolutional import ModuleUse, changed, last_convolutional, tap
from retain.models.seeded import seeded
from retain.samples.outputs import first_tensor
from retain.statistics import FrozenStatistics, frozen_statistics

# Seeds of heads lie apart by a prime, so that networks of neighbouring seeds share none.
HEAD_SEEDS_APART = 1_000_003


class TaskNetwork(nn.Module):
    """A backbone that all tasks share, and heads of which `task` picks the one that is used.

    Args:
        backbone: from inputs to features [n, feature_size].
        feature_size: how many features the heads see.
        shared_head: one head that all tasks share and that never freezes (domain-incremental).
        seed: of the initialisation of the heads.
        adapter: what is done to inputs first, so that they suit the backbone.
        notes: what was done to make the backbone fit, one sentence each.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_size: int,
        *,
        shared_head: bool = False,
        seed: int = 0,
        adapter: nn.Module | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList()
        self.feature_size = feature_size
        self.shared_head = shared_head
        self.seed = seed
        self.adapter = adapter or nn.Identity()
        self.notes = notes
        self.task = 0
        self._frozen: FrozenStatistics | None = None
        self._convolutional: ModuleUse | None = None
        self._looked_for_convolutional = False

    def features(self, inputs: Tensor) -> Tensor:
        """What the heads see, [n, feature_size]."""
        return first_tensor(self.backbone(self.adapter(inputs)))

    def forward(self, inputs: Tensor) -> Tensor:
        """The output for the current task, [n, classes of that task]."""
        output: Tensor = self.head(self.features(inputs))
        return output

    @property
    def head(self) -> nn.Linear:
        """The head of the current task.

        Raises:
            ModelError: there is no head for that task yet.
        """
        number = 0 if self.shared_head else self.task
        if not 0 <= number < len(self.heads):
            raise ModelError(
                f"There is no head for task {number}: the network has {len(self.heads)}. "
                "Add one with add_head(classes)."
            )
        head = self.heads[number]
        assert isinstance(head, nn.Linear)
        return head

    def add_head(self, classes: int) -> int:
        """The number of the task that a new head is made for, now the current one.

        The older heads are frozen, as in the paper. With `shared_head` there is one head: it is
        made once and then stays as it is.

        Raises:
            ModelError: a shared head that would need another number of classes.
        """
        if self.shared_head and len(self.heads):
            if self.head.out_features != classes:
                raise ModelError(
                    f"One head is shared by all tasks and has {self.head.out_features} outputs, "
                    f"but the next task has {classes} classes."
                )
            return 0
        self.heads.requires_grad_(False)
        with seeded(self.seed + HEAD_SEEDS_APART * (len(self.heads) + 1)):
            head = nn.Linear(self.feature_size, classes)
        like = next(self.backbone.parameters(), None)
        self.heads.append(head if like is None else head.to(like.device, like.dtype))
        self.task = len(self.heads) - 1
        return self.task

    @property
    def freeze_statistics(self) -> bool:
        """Whether batch-norm keeps its running statistics (and uses them) also in train mode."""
        return self._frozen is not None

    @freeze_statistics.setter
    def freeze_statistics(self, frozen: bool) -> None:
        if frozen and self._frozen is None:
            self._frozen = frozen_statistics(self.backbone)
        elif not frozen and self._frozen is not None:
            self._frozen.remove()
            self._frozen = None

    def train(self, mode: bool = True) -> TaskNetwork:
        """Train or eval mode; with `freeze_statistics` batch-norm stays in eval mode."""
        super().train(mode)
        if self._frozen is not None:
            self._frozen.hold()
        return self

    def conv_features(self, inputs: Tensor) -> Tensor:
        """The last convolutional features, flattened to [n, d], or else what the heads see."""
        return self.features_and_conv(inputs)[1]

    def features_and_conv(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads see [n, f] and the convolutional features [n, d], in one pass."""
        place = self._place_of_convolutional(inputs)
        if place is None:
            features = self.features(inputs)
            return features, features
        with tap(self.backbone, place) as tapped:
            features = self.features(inputs)
        return features, tapped[0]

    def forward_through(self, inputs: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The output, if `change` is applied to the convolutional features [n, d] on their way."""
        place = self._place_of_convolutional(inputs)
        if place is None:
            output: Tensor = self.head(change(self.features(inputs)))
            return output
        with changed(self.backbone, place, change):
            return self.forward(inputs)

    def _place_of_convolutional(self, inputs: Tensor) -> ModuleUse | None:
        """Where the last convolutional features come out; looked for once."""
        if not self._looked_for_convolutional:
            with torch.no_grad():
                adapted = self.adapter(inputs[:2])
            self._convolutional = last_convolutional(self.backbone, adapted)
            self._looked_for_convolutional = True
        return self._convolutional
