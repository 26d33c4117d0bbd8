"""What a batch comes to: each parameter's sum, the route that it went, and what is left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from retain.per_sample.backward import PerSampleBackward, See
from retain.per_sample.fallback import HOOKED, SIDE_DOOR, UNASKABLE, UNUSED
from retain.per_sample.graph import Graph
from retain.per_sample.hooks import Multipliers, hooked
from retain.per_sample.lent import taken_gradients
from retain.per_sample.passes import score_weights
from retain.per_sample.reference import gradients_of
from retain.per_sample.sums import Sum
from retain.per_sample.switches import without_autocast


class Tally:
    """Filled by passes along a plan; what they cannot fill is written down to be looped over."""

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        power: int,
        clock: Callable[[], float],
    ) -> None:
        self.parameters, self.power, self._clock = parameters, power, clock
        self.seconds = 0.0  # that the last passes took which filled it
        self.sums = {name: Sum(p.shape, p.dtype, p.device, power) for name, p in parameters.items()}
        # name → how its sum was computed in the last batch: "linear", "masked", "loop", …
        self.routes: dict[str, str] = {}
        self.looped: dict[str, str] = {}  # parameters that are looped over in any batch, and why
        self._multipliers = Multipliers()

    def clear(self) -> None:
        """Begin again."""
        for total in self.sums.values():
            total.clear()
        self.routes = dict.fromkeys(self.parameters, UNUSED)

    def results(self) -> dict[str, Tensor]:
        """The sums, name → tensor shaped like the parameter."""
        return {name: total.result() for name, total in self.sums.items()}

    def replace(self, name: str, powers: Tensor, route: str) -> None:
        """Put another sum in place of a parameter's own."""
        self.sums[name].clear()
        self.sums[name].add(powers)
        self.routes[name] = route

    def fill_with_one(self, graph: Graph) -> None:
        """The gradients of one sample: there, the ordinary ones."""
        self.clear()
        for row in score_weights(graph):
            for name, g in gradients_of(graph, row, self.parameters).items():
                self.sums[name].add_raised(g)
                self.routes[name] = "one sample"

    def fill(
        self,
        backward: PerSampleBackward,
        rows: Sequence[Tensor],
        *,
        also: See | None = None,
        throughout: See | None = None,
        keep: bool = False,
    ) -> None:
        """The sums of a pass for each of these weights of the scores.

        `also` sees the gradients at the frontier in the first, `throughout` in all of them. The
        graph is let go in the last, unless `keep`.
        """
        start = self._clock()
        self.clear()
        with without_autocast():
            for at, row in enumerate(rows, 1):
                see = also if at == 1 and also is not None else throughout
                backward.run(row, also=see, keep=keep or at < len(rows))
        self.routes.update(backward.routes)
        self.looped.update(dict.fromkeys(backward.unaskable, UNASKABLE))
        self._ask_hooks()
        self.seconds = self._clock() - start

    def follow_side_doors(self) -> None:
        """Loop over parameters whose gradients came some other way than by the graph."""
        arrived = taken_gradients(self.parameters)
        self.looped.update(dict.fromkeys(arrived, SIDE_DOOR))

    def _ask_hooks(self) -> None:
        """Let hooks on parameters have their say."""
        for name in hooked(self.parameters):
            if name in self.looped or self.sums[name].empty:
                continue
            if not self._multipliers.apply(name, self.parameters[name], self.sums[name]):
                self.looped[name] = HOOKED
