"""WiSE-FT (Wortsman et al. 2022): fine-tune freely, then go part of the way back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from retain.methods.start import FromStart, shared_weights
from retain.ranges import UpToOne
from retain.tasks import TaskSequence


@dataclass(frozen=True)
class WiSEFTOptions:
    """Defaults of WiSE-FT.

    Attributes:
        alpha: α, how far towards the fine-tuned weights: 0 is the start, 1 is fine-tuning.
    """

    alpha: UpToOne = 0.5


class WiSEFT(FromStart[WiSEFTOptions]):
    """θ = (1 − α) θ_before + α θ_after, once a task is learned; the next one begins there."""

    name = "wise-ft"
    title = "WiSE-FT"
    Options = WiSEFTOptions
    stores = "The shared weights from before the task, while it is learned."
    needs = "nothing"
    knob = "alpha"
    sweep = (0.1, 0.3, 0.5, 0.7, 0.9)

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Put the average into the network."""
        after = shared_weights(self.network, self.setting)
        # θ = (1 − α) θ_before + α θ_after   (WiSE-FT, eq. 1)
        merged = {
            name: before + self.options.alpha * (after[name] - before)
            for name, before in self.start.items()
        }
        self.network.load_state_dict(merged, strict=False)
        self.start = {}

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """The weights from before the task."""
        return {"anchor": self.start.values()}
