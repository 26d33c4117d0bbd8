"""The diagonal Fisher information of EWC: squared gradients of log p(y|x), sample by sample.

The output holds unnormalised log-probabilities: [n, classes], or [n, positions, classes] where
every position is a choice of its own. Squaring and summing over samples is the engine's, power 2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from retain.errors import InputError
from retain.samples.batches import Batch
from retain.samples.outputs import counted

IGNORED = -100  # the label of positions that do not count, as in torch's cross_entropy


class Sampled:
    """sₖ = log p(y|xₖ) with y drawn from the model: the true Fisher, one draw per sample.

    Source: Kirkpatrick et al., PNAS 2017; the draw as in Martens, JMLR 2020, §5.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def target(self, output: Tensor, batch: Batch) -> Tensor:
        """[n, …]: a label per sample and position, drawn from the model's own p(y|x).

        One random number per label, in order, so that cutting the data into other batches, or
        padding it, draws the same labels.
        """
        cumulated = _log_probabilities(output).exp().double().cpu().cumsum(-1)
        kept = counted(batch, output)
        kept = torch.ones(output.shape[:-1]).bool() if kept is None else kept.cpu()
        chance = torch.zeros((*output.shape[:-1], 1), dtype=torch.float64)
        chance[kept] = torch.rand(
            (int(kept.sum()), 1), dtype=torch.float64, generator=self.generator
        )
        below = cumulated < chance * cumulated[..., -1:]
        return below.sum(-1).clamp(max=output.shape[-1] - 1).to(output.device)

    def __call__(self, output: Tensor, target: Tensor | None) -> Tensor:
        """[n]: log p(y|x), summed over positions."""
        return _log_likelihood(output, target)


class Exact:
    """s_ck = √p(c|xₖ) · log p(c|xₖ), √p held constant: squares give p (∂ log p)², for all c.

    The expectation over y in closed form, at the price of a backward pass per class (and position:
    given x, positions are independent, so that the mixed terms vanish).
    """

    def target(self, output: Tensor, batch: Batch) -> None:
        """Nothing: every label takes part."""

    def __call__(self, output: Tensor, target: Tensor | None = None) -> Tensor:
        """[positions · classes, n]."""
        log_p = _log_probabilities(output)
        # F = Σ_c p(c|x) (∂ log p(c|x) / ∂θ)²
        return (log_p.detach().mul(0.5).exp() * log_p).flatten(1).T


class Empirical:
    """sₖ = log p(yₖ|xₖ) with the label of the batch; cheaper in thought, not the Fisher.

    Source: Kunstner et al., NeurIPS 2019, on how it differs.
    """

    def target(self, output: Tensor, batch: Batch) -> Tensor:
        """[n, …]: the labels that came with the batch.

        Raises:
            InputError: there are none, or they do not fit the output.
        """
        labels, expected = batch.labels, tuple(output.shape[:-1])
        if labels is not None and batch.rows is not None and not labels.is_floating_point():
            labels = batch.rows.arranged(labels - IGNORED) + IGNORED
        if labels is None:
            raise InputError(
                'fisher="empirical" needs labels: batches (input, labels), or dicts with "labels". '
                'Without labels, use fisher="sampled" or "exact".'
            )
        if labels.is_floating_point() or tuple(labels.shape) != expected:
            raise InputError(
                f"The labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                f"expected whole numbers of shape {expected}, one per row of the output."
            )
        classes = output.shape[-1]
        outside = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
        if outside.any():
            raise InputError(
                f"The label {int(labels[outside][0])} is none of the output's {classes} classes, "
                f"0 … {classes - 1}."
            )
        return labels.to(output.device)

    def __call__(self, output: Tensor, target: Tensor | None) -> Tensor:
        """[n]: log p(y|x), summed over positions."""
        return _log_likelihood(output, target)


def _log_likelihood(output: Tensor, target: Tensor | None) -> Tensor:
    if target is None:
        raise TypeError("A likelihood needs labels.")
    counts = target != IGNORED
    label = target.where(counts, 0).unsqueeze(-1)
    chosen = _log_probabilities(output).gather(-1, label).squeeze(-1)
    return chosen.where(counts, 0.0).reshape(len(output), -1).sum(1)


def _log_probabilities(output: Tensor) -> Tensor:
    """Give log p(c|x) for an output that can be read as one row of logits per choice."""
    if output.ndim not in (2, 3) or output.shape[-1] < 2:
        raise InputError(
            "The Fisher needs logits of shape [n, classes] or [n, positions, classes] with two "
            f"classes or more; the output has shape {tuple(output.shape)}. Reshape it with "
            "output=…; one logit z for two classes is output=lambda z: torch.cat([0 * z, z], 1)."
        )
    return log_softmax(output, -1)
