"""Tiny models of the transformers library, texts of several lengths, and ways to batch them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import retain

V, LONGEST = 31, 7


def _sizes() -> dict[str, int]:
    return {
        "vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 64,
    }  # fmt: skip


def _gpt2(head: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=64, n_embd=8, n_layer=2, n_head=2, n_inner=12,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return getattr(transformers, head)(config)


def _llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_sizes()))


def _bert(head: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, head)(transformers.BertConfig(**_sizes()))


def _t5(head: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=V, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, use_cache=False,
        decoder_start_token_id=0,
    )  # fmt: skip
    return getattr(transformers, head)(config)


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: _gpt2("GPT2LMHeadModel"),
    "gpt2 hidden states": lambda: _gpt2("GPT2Model"),
    "llama": _llama,
}
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: _bert("BertForMaskedLM"),
    "bert hidden states": lambda: _bert("BertModel"),
    "t5 encoder": lambda: _t5("T5EncoderModel"),
}


def encoder_decoder() -> nn.Module:
    return _t5("T5ForConditionalGeneration")


def ready(make: Callable[[], nn.Module]) -> nn.Module:
    """The model in float64, with biases that are not zero."""
    model = make().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def texts(*lengths: int) -> list[Tensor]:
    return [torch.randint(2, V, (length,)) for length in lengths]


def padded(
    some: list[Tensor],
    width: int,
    *,
    side: str = "right",
    dtype: torch.dtype = torch.long,
    positions: bool = False,
    filler: int = 0,
    prefix: str = "",
) -> dict[str, Tensor]:
    """A batch as a tokenizer gives it; with the position ids that texts padded on the left need."""
    ids = torch.full((len(some), width), filler)
    mask = torch.zeros(len(some), width, dtype=torch.long)
    for k, text in enumerate(some):
        at = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[k, at], mask[k, at] = text, 1
    batch = {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask.to(dtype)}
    if positions:
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return batch


def flattened(some: list[Tensor]) -> dict[str, Tensor]:
    """All texts in one row, as transformers' DataCollatorWithFlattening gives them."""
    return {
        "input_ids": torch.cat(some)[None],
        "position_ids": torch.cat([torch.arange(len(text)) for text in some])[None],
    }


def omega(model: nn.Module, batches: list[Any], kind: Any = retain.MAS, **more: Any) -> Any:
    return kind(model, **more).observe(batches, progress=False).observed


def one_by_one(
    model: nn.Module, some: list[Any], call: Callable[[Any], Tensor]
) -> dict[str, Tensor]:
    """Ω by hand: 1/N Σₖ |∂‖F(xₖ)‖²/∂θ|, with `call` giving F of one sample."""
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample in some:
        score = call(sample).square().sum()
        grads = torch.autograd.grad(score, list(model.parameters()), allow_unused=True)
        for (name, total), grad in zip(sums.items(), grads, strict=True):
            sums[name] = total if grad is None else total + grad.abs()
    return {name: total / len(some) for name, total in sums.items()}


def assert_same(
    found: Mapping[str, Tensor], truth: Mapping[str, Tensor], within: float = 1e-9
) -> None:
    """Equal, relative to the importance of each parameter; vanishing ones to that of all."""
    assert found.keys() == truth.keys()
    floor = 1e-12 * max(float(value.norm()) for value in truth.values())
    for name, value in truth.items():
        error = float((found[name].double() - value.double()).norm())
        assert error <= within * float(value.double().norm()) + floor, (name, error)
    assert floor > 0
