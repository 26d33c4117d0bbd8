"""Backbones for small images: a multi-layer perceptron and a convolutional network."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

# Inputs of fewer numbers than this (8×8 digits) get the narrow perceptron.
WIDE_FROM = 256
WIDE, NARROW = 400, 100
CONV_FEATURES = 128


class MLP(nn.Module):
    """Two hidden ReLU layers on flattened inputs: 784-400-400, or 64-100-100 for 8×8 images."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        size = math.prod(input_shape)
        self.feature_size = WIDE if size >= WIDE_FROM else NARROW
        self.layers = nn.Sequential(
            nn.Linear(size, self.feature_size),
            nn.ReLU(),
            nn.Linear(self.feature_size, self.feature_size),
            nn.ReLU(),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [n, feature_size] of inputs [n, …]."""
        features: Tensor = self.layers(inputs.flatten(1))
        return features


class SmallConv(nn.Module):
    """Three 3×3 convolutions (32, 64, 64) with ReLU and two poolings, then one Linear of 128."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.feature_size = CONV_FEATURES
        pooled = (min(4, height // 4), min(4, width // 4))
        self.convolutions = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 32, 3, padding=1),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 64, 3, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(64, 64, 3, padding=1),
                relu3=nn.ReLU(),
                pool3=nn.AdaptiveAvgPool2d(pooled),
            )
        )
        self.project = nn.Linear(64 * math.prod(pooled), self.feature_size)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [n, 128] of images [n, c, h, w]."""
        features: Tensor = self.relu(self.project(self.convolutions(inputs).flatten(1)))
        return features
