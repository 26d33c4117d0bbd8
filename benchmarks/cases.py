"""The models that are measured: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Batch = Any


@dataclass(frozen=True)
class Case:
    """A model, a batch of `samples`, and what an Ω pass should cost.

    Attributes:
        name: how it is called.
        samples: the size of the batch.
        build: makes the model.
        inputs: makes a batch of so many samples.
        target: the most that a pass should take, in plain passes.
        gain: how many times as fast it should be as the fastest other way.
        core: whether it is measured when nothing is asked for.
    """

    name: str
    samples: int
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Batch]
    target: float
    gain: float = 4.0
    core: bool = False

    @property
    def label(self) -> str:
        """The model and the size of its batch."""
        return f"{self.name}, n = {self.samples}"

    def make(self) -> tuple[nn.Module, Batch]:
        """The model in eval mode and its batch, the same at each call."""
        torch.manual_seed(0)
        return self.build().eval(), self.inputs(self.samples)


def images(size: int) -> Callable[[int], Batch]:
    """N → a batch of square images."""
    return lambda n: torch.randn(n, 3, size, size)


def vectors(size: int) -> Callable[[int], Batch]:
    """N → a batch of vectors."""
    return lambda n: torch.rand(n, size)


def tokens(length: int, vocabulary: int) -> Callable[[int], Batch]:
    """N → a batch of token sequences."""
    return lambda n: {"input_ids": torch.randint(vocabulary, (n, length))}


def mlp() -> nn.Module:
    """The network of the split Fashion-MNIST protocol."""
    return nn.Sequential(
        *(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    )


def torchvision(name: str) -> Callable[[], nn.Module]:
    """One of torchvision's models, untrained."""

    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None)

    return build


def timm(name: str) -> Callable[[], nn.Module]:
    """One of timm's models, untrained."""

    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return build


def transformers(kind: str, **config: Any) -> Callable[[], nn.Module]:
    """A model of transformers with a small configuration, untrained."""

    def build() -> nn.Module:
        import transformers

        model_class = getattr(transformers, kind)
        return model_class(model_class.config_class(use_cache=False, **config))

    return build


GPT2 = {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 128}
SMALL = {
    **{"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 6},
    **{"max_position_embeddings": 128},
}
LLAMA = SMALL | {"intermediate_size": 1024, "num_key_value_heads": 2, "vocab_size": 32000}
BERT = SMALL | {"intermediate_size": 1536}

TRANSFORMER = 1.4  # of which a loop over samples keeps the matrix products large

CASES = [
    Case("MLP 784-400-400-10", 256, mlp, vectors(784), 1.15, core=True),
    Case("AlexNet", 32, torchvision("alexnet"), images(224), 1.0, core=True),
    Case("ResNet-18", 16, torchvision("resnet18"), images(224), 1.05, core=True),
    Case("ResNet-50", 8, torchvision("resnet50"), images(224), 1.05),
    Case("ViT-S/16", 16, timm("vit_small_patch16_224"), images(224), 1.05, TRANSFORMER, core=True),
    Case("Swin-T", 8, torchvision("swin_t"), images(224), 1.25, TRANSFORMER),
    Case(
        "GPT-2 6×384, tied", 8,
        transformers("GPT2LMHeadModel", **GPT2), tokens(128, 50257), 1.05, TRANSFORMER,
    ),
    Case(
        "GPT-2 6×384, untied", 8,
        transformers("GPT2LMHeadModel", **GPT2, tie_word_embeddings=False), tokens(128, 50257),
        1.1, TRANSFORMER,
    ),
    Case(
        "Llama-like 6×384", 8,
        transformers("LlamaForCausalLM", **LLAMA), tokens(128, 32000), 1.1, TRANSFORMER,
    ),
    Case(
        "BERT-like 6×384", 8,
        transformers("BertForSequenceClassification", **BERT), tokens(128, 30522), 1.1, TRANSFORMER,
    ),
    Case("MobileNetV2", 16, torchvision("mobilenet_v2"), images(224), 1.1),
    Case("EfficientNet-B0", 16, torchvision("efficientnet_b0"), images(224), 1.1),
    Case("ConvNeXt-T", 16, torchvision("convnext_tiny"), images(224), 1.1),
]  # fmt: skip


def chosen(only: list[str], *, every: bool) -> list[Case]:
    """The core cases, every case, or those whose name contains one of the words."""
    if not only:
        return [case for case in CASES if case.core or every]
    found = [case for case in CASES if any(word.lower() in case.name.lower() for word in only)]
    if not found:
        raise SystemExit(f"No case is called {only}. Known: {', '.join(c.name for c in CASES)}.")
    return found
