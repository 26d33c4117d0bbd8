"""An optimizer of adapters, whose every step holds what they do to the weights below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from retain.integrations.peft.low_rank import Block, settle_all, summed, value
from retain.memory.attachment import Attachment, grad_scale, skipped
from retain.memory.optimizers import FOLLOWING, FoundOptimizer
from retain.memory.step_size import step_size
from retain.penalty import Metric


class LoraAttachment(Attachment):
    """As any other for what is no adapter's; the adapters move by the products that they make.

    Args:
        found: the optimizer, and what is around it.
        form: "gradient", "proximal" or "adaptive".
        blocks: looks up the weights that adapters move.
        more: what `Attachment` takes, for the parameters that are no adapter's.
    """

    def __init__(
        self, found: FoundOptimizer, form: str, *, blocks: Callable[[], list[Block]], **more: Any
    ) -> None:
        super().__init__(found, form, **more)
        self._blocks = blocks

    def _trained(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """The parameters of the optimizer that move, with their groups."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    yield p, group

    def _lend(self) -> None:
        super()._lend()
        if skipped(self.optimizer):
            return
        trained = list(self._trained())
        scale = float(self._weight() * grad_scale(self.optimizer))
        found = summed(self._blocks(), scale, {id(p) for p, _group in trained})
        for p, group in trained:
            gradient = found.get(id(p))
            if gradient is None or (p.grad is None and not gradient.any()):
                continue
            if group.get("maximize", False):
                gradient.neg_()
            # g + scale · ∂/∂A Σ Ω (W + s B A − θ*)²
            self._ledger.lend(id(self), p, gradient if p.grad is None else p.grad + gradient)

    def _follow(self) -> None:
        super()._follow()
        if skipped(self.optimizer):
            return
        groups = {id(p): group for p, group in self._trained()}
        weight = self._weight()

        def scale_of(p: nn.Parameter) -> tuple[float, Metric | None] | None:
            group = groups.get(id(p))
            if group is None:
                return None
            if self.form != "adaptive":
                return float(group["lr"]) * weight, None
            rate, metric = step_size(self.optimizer, group, p)
            return float(rate) * weight, metric

        for block in self._blocks():
            settle_all(block, scale_of)

    def _around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        inner = super()._around(closure)

        def evaluated() -> Any:
            loss = inner()
            if self.form in FOLLOWING or not isinstance(loss, (Tensor, int, float)):
                return loss
            with torch.no_grad():
                added = self._weight() * sum(float(value(block)) for block in self._blocks())
            return loss + added

        return evaluated
