"""EBLL, encoder-based lifelong learning (Rannen Triki et al. 2017): LwF, and codes that stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.methods.lwf import DistillsOldHeads, LwFOptions
from retain.methods.method import Setting, drawn_generator, numbered
from retain.models import AutoEncoder, TaskNetwork
from retain.ranges import Count, NotNegative, Positive, Size
from retain.tasks import Minibatch, TaskSequence


@dataclass(frozen=True)
class EBLLOptions(LwFOptions):
    """Defaults of EBLL, beside those of LwF.

    Attributes:
        alpha: α, the weight of the codes' loss, which is a sum: 1/100 of it is the mean over a
            code of 100 numbers.
        code: numbers in a code.
        encoder_epochs: epochs that a task's auto-encoder is trained for.
        encoder_lr: its learning rate, with Adam.
        reconstruction: the weight of its reconstruction error beside the task's loss.
    """

    alpha: NotNegative = 0.01
    code: Size = 100
    encoder_epochs: Count = 4
    encoder_lr: Positive = 1e-3
    reconstruction: NotNegative = 1.0


class EBLL(DistillsOldHeads[EBLLOptions]):
    """LwF's loss + α Σ over old tasks of ‖code(new features) − code(old features)‖².

    The codes are what an under-complete auto-encoder per task keeps of the last convolutional
    features (of those that the heads see, where there is no convolution).
    """

    name = "ebll"
    title = "EBLL"
    Options = EBLLOptions
    stores = (
        "The encoder of one auto-encoder per task; and, while a task is learned, the old heads' "
        "outputs and the old codes for its training data, or a frozen copy of the network."
    )
    needs = "unlabelled old data, once"
    knob = "strength"

    def __init__(self, network: TaskNetwork, options: EBLLOptions, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.encoders: list[nn.Linear] = []

    def answers(self, network: TaskNetwork, inputs: Tensor) -> Tensor:
        """[n, outputs of all old heads and numbers of all codes], side by side."""
        features, convolutional = network.features_and_conv(inputs)
        outputs = [network.heads[head](features) for head in self.old_heads]
        return torch.cat([*outputs, *self._codes(convolutional)], 1)

    def _codes(self, convolutional: Tensor) -> list[Tensor]:
        """[n, code] for every task so far: σ(W_enc f)."""
        return [encoder(convolutional).sigmoid() for encoder in self.encoders]

    def loss(self, batch: Minibatch) -> Tensor:
        """CE(new head) + λ Σ_old distillation + α Σ_old ‖code_new − code_old‖²   (EBLL, eq. 7)."""
        features, convolutional = self.network.features_and_conv(batch.inputs)
        loss = F.cross_entropy(self.network.heads[-1](features), batch.labels)
        if self.old is None:
            return loss
        new = [self.network.heads[head](features) for head in self.old_heads]
        codes = torch.cat(self._codes(convolutional), 1)
        outputs = sum(part.shape[1] for part in new)
        old_outputs, old_codes = self.old(batch).split([outputs, codes.shape[1]], 1)
        # ‖code_new − code_old‖², summed over old tasks, mean over samples
        code_loss = (codes - old_codes).square().sum(1).mean()
        distilled = self.distilled(new, old_outputs)
        loss += self.options.strength * distilled + self.options.alpha * code_loss
        return loss

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Train the auto-encoder of the task that was just learned; keep its encoder."""
        auto_encoder = self._trained_auto_encoder(index, sequence)
        self.encoders.append(auto_encoder.encoder.requires_grad_(False))

    def _trained_auto_encoder(self, index: int, sequence: TaskSequence) -> AutoEncoder:
        batches = sequence.tasks[index].train.batches
        device, order = self.setting.device, drawn_generator()
        self.network.eval()  # nothing of it moves, its running statistics neither
        first = next(batches(2, device=device))
        with torch.no_grad():
            dim = self.network.conv_features(first.inputs).shape[1]
        seed = int(torch.randint(2**31, ()))
        auto_encoder = AutoEncoder(dim, self.options.code, seed=seed).to(device)
        optimizer = torch.optim.Adam(auto_encoder.parameters(), lr=self.options.encoder_lr)
        for _ in range(self.options.encoder_epochs):
            for batch in batches(self.setting.batch_size, shuffle=order, train=True, device=device):
                loss = self._auto_encoder_loss(auto_encoder, batch)
                optimizer.zero_grad()
                # only towards the auto-encoder: the network is not learning now
                loss.backward(inputs=list(auto_encoder.parameters()))
                optimizer.step()
        return auto_encoder

    def _auto_encoder_loss(self, auto_encoder: AutoEncoder, batch: Minibatch) -> Tensor:
        """‖r(f) − f‖² + the task's loss on the output that r(f) leads to   (EBLL, eq. 3)."""
        errors: list[Tensor] = []

        def reconstructed(features: Tensor) -> Tensor:
            given = features.detach()
            kept: Tensor = auto_encoder(given)
            errors.append((kept - given).square().sum(1).mean())
            return kept

        task_loss = F.cross_entropy(
            self.network.forward_through(batch.inputs, reconstructed), batch.labels
        )
        return self.options.reconstruction * errors[0] + task_loss

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """The encoders, and the recorded answers or the teacher."""
        encoders = [tensor for encoder in self.encoders for tensor in encoder.parameters()]
        return {"teacher": self.old.kept() if self.old else [], "encoder": encoders}

    def state_dict(self) -> dict[str, Tensor]:
        """The encoders' weights, task by task."""
        parts = enumerate(encoder.state_dict() for encoder in self.encoders)
        return {f"encoder.{t}.{name}": tensor for t, part in parts for name, tensor in part.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the encoders back."""
        self.encoders = []
        for weights in numbered(state, "encoder"):
            code, dim = weights["weight"].shape
            encoder = nn.Linear(dim, code).to(self.setting.device).requires_grad_(False)
            encoder.load_state_dict(weights)
            self.encoders.append(encoder)
