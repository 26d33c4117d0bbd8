"""Language models of the transformers library, tiny and random."""

from __future__ import annotations

from typing import Any

import torch

from .specimen import images, specimen, tokens

V = 23
transformers: dict[str, Any] = {"needs": "transformers", "samples": 4}


def _words(t: int):
    return lambda n: {"input_ids": torch.randint(1, V, (n, t))}


def _padded(t: int):
    def inputs(n):
        lengths = torch.arange(n) % t + 1
        mask = (torch.arange(t) < lengths[:, None]).long()
        return {"input_ids": torch.randint(1, V, (n, t)) * mask, "attention_mask": mask}

    return inputs


@specimen(_words(5), **transformers)
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_positions=8, n_embd=8, n_layer=2, n_head=2, n_inner=12)
    )


@specimen(_words(5), **transformers)
def llama_with_grouped_queries():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
        )
    )  # fmt: skip


@specimen(_padded(5), vanishing=("*.key.bias",), **transformers)
def bert_classifier_with_padding():
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=V, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=12, max_position_embeddings=8, num_labels=3,
        )
    )  # fmt: skip


@specimen(_padded(5), **transformers)
def t5_encoder_with_relative_positions():
    from transformers import T5EncoderModel

    return T5EncoderModel(_t5())


def _t5(**more):
    from transformers import T5Config

    return T5Config(
        vocab_size=V, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, **more,
    )  # fmt: skip


@specimen(
    lambda n: {
        "input_ids": torch.randint(1, V, (n, 5)),
        "decoder_input_ids": torch.randint(1, V, (n, 3)),
    },
    **transformers,
)
def t5_tied_and_gated():
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration(_t5(feed_forward_proj="gated-gelu", use_cache=False))


@specimen(_words(6), **transformers)
def mixtral_of_experts():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=V, hidden_size=8, intermediate_size=10, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
            num_experts_per_tok=2, max_position_embeddings=16, experts_implementation="eager",
        )
    )  # fmt: skip


@specimen(tokens(5, V), vanishing=("*.key.bias",), **transformers)
def albert_of_one_shared_layer():
    from transformers import AlbertConfig, AlbertForMaskedLM

    return AlbertForMaskedLM(
        AlbertConfig(
            vocab_size=V, embedding_size=6, hidden_size=8, num_hidden_layers=3,
            num_attention_heads=2, intermediate_size=12, max_position_embeddings=8,
        )
    )  # fmt: skip


@specimen(tokens(6, V), **transformers)
def deberta_v2_with_relative_positions():
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    return DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=V, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=12, max_position_embeddings=8, num_labels=3, relative_attention=True,
            pos_att_type=["p2c", "c2p"], position_buckets=4, share_att_key=True,
            norm_rel_ebd="layer_norm",
        )
    )  # fmt: skip


@specimen(images(3, 8, 8), vanishing=("*.k_proj.bias",), **transformers)
def vit_of_transformers():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
            image_size=8, patch_size=4, num_labels=3,
        )
    )  # fmt: skip


@specimen(
    images(400), slow=True, vanishing=("*.k_proj.bias",), unused=("*.masked_spec_embed",),
    **transformers,
)  # fmt: skip
def wav2vec2():
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 4), num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, classifier_proj_size=6, num_labels=3,
        )
    )  # fmt: skip


@specimen(_words(5), slow=True, **transformers)
def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(
            vocab_size=V, hidden_size=8, state_size=4, num_hidden_layers=2, time_step_rank=2,
            use_cache=False,
        )
    )  # fmt: skip
