"""The well-known image networks, by torchvision's and timm's own constructors, made narrow."""

from __future__ import annotations

from functools import partial

from torch import nn

from .specimen import images, specimen

torchvision = {"needs": "torchvision"}


@specimen(images(3, 64, 64), samples=4, **torchvision)
def alexnet_narrow():
    from torchvision.models import alexnet

    model = alexnet(num_classes=5)
    narrow = {64: 8, 192: 12, 384: 16, 256: 12}
    layers = list(model.features)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            layers[i] = nn.Conv2d(
                narrow.get(layer.in_channels, 3), narrow[layer.out_channels],
                layer.kernel_size, layer.stride, layer.padding,
            )  # fmt: skip
    model.features = nn.Sequential(*layers)
    model.classifier[1] = nn.Linear(12 * 36, 24)
    model.classifier[4] = nn.Linear(24, 24)
    model.classifier[6] = nn.Linear(24, 5)
    return model


@specimen(images(3, 64, 64), samples=3, slow=True, **torchvision)
def alexnet():
    from torchvision.models import alexnet

    return alexnet(num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def resnet_basic_blocks():
    from torchvision.models.resnet import BasicBlock

    model = _narrow_resnet(BasicBlock)
    model.maxpool = nn.Identity()
    return model


@specimen(images(3, 32, 32), samples=4, **torchvision)
def resnext_bottlenecks():
    from torchvision.models.resnet import Bottleneck

    return _narrow_resnet(Bottleneck, groups=4, width_per_group=16)


def _narrow_resnet(block, **options):
    from torchvision.models import ResNet

    class Narrow(ResNet):
        def _make_layer(self, block, planes, *rest, **more):
            return super()._make_layer(block, planes // 8, *rest, **more)

    model = Narrow(block, [1, 2, 1, 1], num_classes=5, **options)
    model.fc = nn.Linear(64 * block.expansion, 5)
    return model


@specimen(images(3, 64, 64), samples=3, slow=True, **torchvision)
def resnet18():
    from torchvision.models import resnet18

    return resnet18(num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def densenet_small():
    from torchvision.models import DenseNet

    return DenseNet(4, (2, 2, 2), 8, bn_size=2, num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def densenet_memory_efficient():
    from torchvision.models import DenseNet

    return DenseNet(4, (2, 2), 8, bn_size=2, num_classes=5, memory_efficient=True)


@specimen(images(3, 64, 64), samples=3, slow=True, **torchvision)
def densenet121():
    from torchvision.models import densenet121

    return densenet121(num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def mobilenet_v2_small():
    from torchvision.models import MobileNetV2

    settings = [[1, 16, 1, 1], [3, 8, 2, 2], [3, 16, 1, 2]]
    return MobileNetV2(5, width_mult=0.25, inverted_residual_setting=settings, round_nearest=4)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def mobilenet_v3_tiny():
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    config = partial(InvertedResidualConfig, width_mult=1.0)
    settings = [
        config(8, 3, 8, 8, True, "RE", 2, 1),
        config(8, 3, 16, 8, False, "RE", 1, 1),
        config(8, 5, 24, 16, True, "HS", 2, 1),
        config(16, 5, 32, 16, True, "HS", 1, 2),
    ]
    return MobileNetV3(settings, last_channel=32, num_classes=5)


@specimen(images(3, 64, 64), samples=3, slow=True, **torchvision)
def mobilenet_v3_small():
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def shufflenet_small():
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [8, 8, 16, 24, 32], num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def efficientnet_small():
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    settings = [
        FusedMBConvConfig(2, 3, 1, 8, 8, 1),
        MBConvConfig(2, 3, 2, 8, 12, 2, width_mult=1.0, depth_mult=1.0),
        MBConvConfig(3, 5, 2, 12, 16, 1, width_mult=1.0, depth_mult=1.0),
    ]
    return EfficientNet(settings, dropout=0.2, stochastic_depth_prob=0.2, num_classes=5)


@specimen(images(3, 64, 64), samples=3, slow=True, **torchvision)
def efficientnet_b0():
    from torchvision.models import efficientnet_b0

    return efficientnet_b0(num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def convnext_small():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    settings = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)]
    return ConvNeXt(settings, num_classes=5)


@specimen(images(3, 64, 64), samples=3, slow=True, **torchvision)
def convnext_tiny():
    from torchvision.models import convnext_tiny

    return convnext_tiny(num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def regnet_small():
    from torchvision.models.regnet import BlockParams, RegNet

    settings = BlockParams([1, 2], [8, 16], [4, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return RegNet(settings, num_classes=5, stem_width=8)


# The first block's windows are shifted, so that padding, rolling and masks all take part.
SWIN = {
    "patch_size": [2, 2], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4],
    "window_size": [4, 4], "mlp_ratio": 2.0, "num_classes": 5,
}  # fmt: skip


@specimen(images(3, 20, 20), samples=4, **torchvision)
def swin_v1():
    from torchvision.models import SwinTransformer

    return SwinTransformer(**SWIN)


@specimen(images(3, 20, 20), samples=4, **torchvision)
def swin_v2():
    from torchvision.models.swin_transformer import (
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    return SwinTransformer(**SWIN, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


@specimen(images(3, 64, 64), samples=3, slow=True, **torchvision)
def swin_t():
    from torchvision.models import swin_t

    return swin_t(num_classes=5)


@specimen(images(3, 16, 16), samples=4, **torchvision)
def vit_by_multihead_attention():
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20,
        num_classes=5,
    )  # fmt: skip


@specimen(images(3, 64, 64), samples=3, slow=True, **torchvision)
def vit_b_16():
    from torchvision.models import vit_b_16

    return vit_b_16(image_size=64, num_classes=5)


@specimen(images(3, 32, 32), samples=4, **torchvision)
def squeezenet():
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(num_classes=5)


@specimen(images(3, 32, 32), samples=4, vanishing=("blocks.*.k_norm.bias",), needs="timm")
def timm_vit_with_layer_scale():
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=3, num_classes=5,
        init_values=1e-4, qk_norm=True,
    )  # fmt: skip


@specimen(images(3, 32, 32), samples=4, vanishing=("blocks.*.mlp_tokens.fc2.bias",), needs="timm")
def timm_mlp_mixer():
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=2, embed_dim=12)


@specimen(images(3, 32, 32), samples=4, needs="timm")
def timm_nfnet_with_standardised_weights():
    from timm.models.nfnet import NfCfg, NormFreeNet

    config = NfCfg(depths=(1, 1), channels=(8, 16), stem_chs=8, group_size=4, num_features=16)
    return NormFreeNet(config, num_classes=5)
