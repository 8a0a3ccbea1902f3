"""The same weights behind the harness's own HFLM: what our adapter is compared with."""

from typing import Any

import pytest
import torch

from data_prep.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.models.transformer import Transformer


def hflm(model: Any, tokenizer: Any, **options: Any):
    """HFLM around a model and a tokenizer of transformers."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="HFLM needs transformers and accelerate")
    return huggingface.HFLM(pretrained=model, tokenizer=tokenizer, **{"batch_size": 4, "device": "cpu"} | options)


def as_fast(tokenizer: Tokenizer):
    """Our tokenizer as one of transformers."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    same = tokenizers.Tokenizer.from_str(tokenizer.content)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=same, eos_token=END_OF_TEXT)


def as_gpt2(gpt: Transformer):
    """The same weights in transformers' GPT-2, whose linear layers are stored transposed."""
    transformers = pytest.importorskip("transformers")
    config = gpt.config
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.context, n_embd=config.width, n_layer=config.layers,
            n_head=config.heads, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    body = twin.transformer
    pairs = [
        (body.wte, gpt.token_embedding),
        (body.wpe, gpt.position_embedding),
        (body.ln_f, gpt.norm),
    ]
    for theirs, ours in zip(body.h, gpt.blocks, strict=True):
        pairs += [(theirs.ln_1, ours.attention_norm), (theirs.ln_2, ours.mlp_norm)]
        pairs += [(theirs.attn.c_attn, ours.attention.query_key_value), (theirs.attn.c_proj, ours.attention.output)]
        pairs += [(theirs.mlp.c_fc, ours.mlp.expand), (theirs.mlp.c_proj, ours.mlp.output)]
    with torch.no_grad():
        for theirs, ours in pairs:
            transposed = theirs.weight.shape != ours.weight.shape or type(theirs).__name__ == "Conv1D"
            theirs.weight.copy_(ours.weight.T if transposed else ours.weight)
            if getattr(ours, "bias", None) is not None:
                theirs.bias.copy_(ours.bias)
    return twin.eval()
