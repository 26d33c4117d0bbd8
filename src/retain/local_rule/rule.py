"""Memory Aware Synapses, locally: Hebb's rule for any model, by forward passes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from retain.errors import ModelError, NonFiniteError, RetainError
from retain.local_rule.forward_passes import Pass, Passes
from retain.local_rule.layer_sums import LocalSums
from retain.local_rule.serving import CallObserver, Commit, Turns
from retain.per_sample.blame import BROKEN
from retain.per_sample.halving import Halving, shortage
from retain.per_sample.lent import Writes, state_aside, weights_aside
from retain.samples.batches import Batch


class LocalRule:
    """Σₖ|gₖ| with gₖ = ∂‖y_l‖²/∂θ, y_l a layer's own output and its input held constant (l-MAS).

    **The layer's function.** y_l = σ(s·(W y + b) + t) for every `linear`, `addmm`, `conv1d…3d` and
    `conv_transpose1d…3d` that the model calls with a wanted parameter as its weight or bias.

    - s, t: batch-norm, when it is the first to read W y + b and uses its running statistics.
    - σ: the elementwise non-linearity (activations.py) that reads this output, as one function of
      torch, in place or not. Views, reshapes, transposes, copies and dropout in eval mode may
      stand between. It counts when nothing else reads the output before the next layer runs;
      otherwise σ is the identity: where a residual sum, another normalisation or a softmax follows,
      where a non-linearity is written out in several functions, and where a hook reads the output.

    Then gₖ = Σ_positions 2 y_l σ′(z) s ⊗ y with z what σ is applied to, which after ReLU is
    2 y_l ⊗ y: Hebb's rule. The sum is over positions, but for those that a mask excludes, and over
    several uses of a weight, inside a sample; |·| follows, then the sum over samples. A bias gets
    Σ_positions 2 y_l σ′(z) s.

    **Left out**, absent from the sums: parameters of anything else (norms, embeddings, recurrent
    cells, the packed projections of `nn.MultiheadAttention`, reparametrised weights), and heads:
    linear layers whose output the model returns, as it is or through views and softmax.

    `routes` says for every parameter what was found: "convolution, batch-norm, relu", "linear", or
    "none: …" with the reason.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, the section on the local version.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        *,
        batch_dim: int = 0,
        heads: bool = False,
        served: nn.Module | None = None,
    ) -> None:
        """What is needed while serving is given here as well.

        Args:
            model: the network.
            parameters: name → the wanted ones.
            batch_dim: the dimension that counts samples in what a served model is given.
            heads: do not leave heads out.
            served: the module that is called while serving, if not `model` but a compiled one.
        """
        if isinstance(model, torch.jit.ScriptModule):
            raise ModelError(
                "A scripted model does not show its layers as they run. Use the module that it was "
                "scripted from."
            )
        self.model = model
        self.served = model if served is None else served
        self.batch_dim = batch_dim
        self._passes = Passes(parameters, heads=heads)
        self._sums = LocalSums()
        self._halving = Halving()
        self._writes: Sequence[Tensor] | None = None  # None: nobody looked

    @property
    def precision(self) -> None:
        """Not known."""

    @property
    def squared_norms(self) -> None:
        """Not known: the rule looks at layers, not at the output."""

    @property
    def routes(self) -> dict[str, str]:
        """Parameter → the layer and its non-linearity, or "none: …" with the reason."""
        return self._passes.routes

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The sums over the samples of `batch`, name → tensor shaped like the parameter.

        They belong to the rule until its next call. Call it inside `borrowed(model)`. The first
        batch of more than one sample is run a second time, with three of its samples alone, to
        see which rows of every layer belong to which sample.

        Raises:
            ModelError: no layer has a local rule.
            NonFiniteError: NaN or infinity in a layer's inputs or outputs.
            OutOfMemoryError: one sample alone does not fit into memory; what does not fit together
                is halved.
        """
        with state_aside(self.model.modules()), weights_aside(self._written(batch)):
            return self._halving(self._whole, batch)

    def _written(self, batch: Batch) -> Sequence[Tensor]:
        """The weights that a pass writes to, as those of `nn.Embedding(max_norm=…)`; found once."""
        if self._writes is None:
            # what is wrong with the batch, the pass itself will say
            with Writes(self.model) as writes, torch.no_grad(), suppress(*BROKEN):
                batch.take(0, 1).copied().call(self.model)
            self._writes = writes.weights
        return self._writes

    def _whole(self, batch: Batch) -> dict[str, Tensor]:
        if batch.rows is not None and batch.samples > 1:
            return self._one_by_one(batch)
        try:
            with torch.no_grad():
                return self._together(batch)
        except RetainError:
            raise
        except Exception as error:
            if shortage(error):
                raise
            with torch.enable_grad():  # as a model may want that puts hooks on its tensors
                return self._together(batch)

    def _together(self, batch: Batch) -> dict[str, Tensor]:
        looked = batch.samples > 1 and not self._passes.looked
        if looked:
            self._passes.look(self.model, batch)
        while True:
            one = self._passes.begun(self._sums, batch.samples, batch.masks())
            one.run(batch.copied().call, self.model)  # it may write to its inputs
            if one.unknown and looked:
                one.leave_out_unknown()
            elif one.unknown:
                self._passes.look(self.model, batch)
                looked = True
            sums = one.result()
            if sums is not None:
                self._refuse(sums, one)
                return sums

    def _one_by_one(self, batch: Batch) -> dict[str, Tensor]:
        """The sums where rows are no samples: a layer's rows are those of one sample at a time."""
        totals: dict[str, Tensor] = {}
        for k in range(batch.samples):
            for name, each in self._whole(batch.take(k, k + 1)).items():
                totals[name] = totals[name] + each if name in totals else each.clone()
        return totals

    def _refuse(self, sums: dict[str, Tensor], one: Pass) -> None:
        if not sums:
            found = "\n".join(f"  {name}: {route}" for name, route in self.routes.items())
            raise ModelError(
                f"No layer that ran has a local rule:\n{found}\n"
                "Expected a linear or convolutional layer before the head. Use retain.MAS, which "
                "takes any model."
            )
        if broken := one.not_finite():
            raise NonFiniteError(
                f"NaN or infinity in the inputs or outputs of the layers of {broken}. Nothing of "
                "this batch was counted."
            )

    def listener(
        self, commit: Commit, turns: Turns | None = None, *, padding_mask: str | None = None
    ) -> CallObserver:
        """What observes the user's own calls of the model while it serves: see `CallObserver`.

        For each sampled call `commit(sums, samples)` is called once and must copy or add the sums.
        """
        return CallObserver(
            self.served, self.model, self._passes, commit,
            turns=turns, batch_dim=self.batch_dim, padding_mask=padding_mask,
        )  # fmt: skip
