"""The decoder-only transformer: equal to other implementations, causal, banded, inside documents, cached, compiled."""

import copy
import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.layers import attention as attention_module
from pipeline.layers import documents as documents_module
from pipeline.layers.attention import CausalSelfAttention, causal_attention, flexible_attention
from pipeline.layers.documents import DocumentCache, Documents
from pipeline.models.transformer import TransformerConfig

# B batch, T time, D width, H heads, G key and value heads, K head width, V vocabulary

SHAPE = {"vocab_size": 61, "context": 32, "layers": 4, "width": 32, "heads": 4}
LLAMA = SHAPE | {
    "kv_heads": 2, "hidden": 44, "norm": "rmsnorm", "norm_eps": 1e-6, "positions": "rotary", "activation": "swiglu",
    "bias": False, "tied": False,
}  # fmt: skip
FALCON = SHAPE | {
    "kv_heads": 1, "positions": "rotary", "activation": "gelu", "bias": False, "parallel": True, "shared_norm": True,
}  # fmt: skip
PYTHIA = SHAPE | {
    "positions": "rotary", "rotary_fraction": 0.25, "activation": "gelu", "parallel": True, "tied": False,
}  # fmt: skip
GPT1 = SHAPE | {"norm_order": "post", "position_std": 0.02, "scale_residual_init": False}
GPT3 = SHAPE | {"band": 5}
END = 7

VARIANTS = {
    "gpt1": GPT1,
    "gpt2": SHAPE,
    "gpt3": GPT3,
    "llama": LLAMA,
    "wide heads": LLAMA | {"head_width": 12, "rotary_fraction": 0.5},
    "falcon": FALCON,
    "pythia": PYTHIA,
    "documents": LLAMA | {"document_end": END},
    "banded documents": LLAMA | {"document_end": END, "band": 5, "band_every": 1},
}


def build(settings: dict, seed: int = 0) -> nn.Module:
    """A model in which every parameter is random, biases and gains too."""
    torch.manual_seed(seed)
    model = TransformerConfig(**settings).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=VARIANTS)
def model(request):
    return build(VARIANTS[request.param])


def tokens(rows: int, columns: int, seed: int = 1) -> Tensor:
    drawn = torch.randint(0, 61, (rows, columns), generator=torch.Generator().manual_seed(seed))
    drawn[0, 3::4] = END
    drawn[-1, 9:11] = END
    return drawn


# -- against transformers


def gpt2_names(ours: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Their linear layers are stored transposed."""
    names = {
        "token_embedding": "wte", "position_embedding": "wpe", "attention_norm": "ln_1", "mlp_norm": "ln_2",
        "attention.query_key_value": "attn.c_attn", "attention.output": "attn.c_proj", "mlp.expand": "mlp.c_fc",
        "mlp.output": "mlp.c_proj", "blocks": "h", "norm": "ln_f",
    }  # fmt: skip
    linear = ("query_key_value.weight", "output.weight", "expand.weight")
    return {
        f"transformer.{renamed(name, names)}": tensor.T if name.endswith(linear) else tensor
        for name, tensor in ours.items()
    }


def gpt1_names(ours: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    theirs = gpt2_names(ours, config)
    return {name.replace("wte", "tokens_embed").replace("wpe", "positions_embed"): t for name, t in theirs.items()}


def llama_names(ours: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    names = {
        "token_embedding": "model.embed_tokens", "blocks": "model.layers", "attention_norm": "input_layernorm",
        "attention.output": "self_attn.o_proj", "mlp_norm": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj",
        "mlp.expand": "mlp.up_proj", "mlp.output": "mlp.down_proj", "norm": "model.norm", "head": "lm_head",
    }  # fmt: skip
    theirs = {}
    for name, tensor in ours.items():
        if "query_key_value" in name:
            block, K = renamed(name, names).split(".attention.")[0], config.head_features
            parts = tensor.split([config.heads * K, config.kv_heads * K, config.kv_heads * K])
            theirs |= {
                f"{block}.self_attn.{letter}_proj.weight": part for letter, part in zip("qkv", parts, strict=True)
            }
        else:
            theirs[renamed(name, names)] = tensor
    return theirs


def falcon_names(ours: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    names = {
        "token_embedding": "word_embeddings", "blocks": "h", "attention_norm": "input_layernorm",
        "attention.query_key_value": "self_attention.query_key_value", "attention.output": "self_attention.dense",
        "mlp.expand": "mlp.dense_h_to_4h", "mlp.output": "mlp.dense_4h_to_h", "norm": "ln_f",
    }  # fmt: skip
    return {f"transformer.{renamed(name, names)}": tensor for name, tensor in ours.items()}


def neox_names(ours: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Their fused rows go head by head: its query, its key, its value."""
    names = {
        "token_embedding": "gpt_neox.embed_in", "blocks": "gpt_neox.layers", "attention_norm": "input_layernorm",
        "attention.query_key_value": "attention.query_key_value", "attention.output": "attention.dense",
        "mlp_norm": "post_attention_layernorm", "mlp.expand": "mlp.dense_h_to_4h", "mlp.output": "mlp.dense_4h_to_h",
        "norm": "gpt_neox.final_layer_norm", "head": "lm_head",
    }  # fmt: skip
    return {
        renamed(name, names): tensor.unflatten(0, (3, config.heads, -1)).transpose(0, 1).flatten(0, 2)
        if "query_key_value" in name
        else tensor
        for name, tensor in ours.items()
    }


def renamed(name: str, names: dict[str, str]) -> str:
    """blocks.2.mlp.output.weight -> h.2.mlp.c_proj.weight"""
    if name.startswith("blocks."):
        blocks, number, rest = name.split(".", 2)
        return f"{names[blocks]}.{number}.{renamed(rest, names)}"
    module, _, kind = name.rpartition(".")
    return f"{names.get(module, module)}.{kind}"


COMMON = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager"}
GPT_SHAPE = COMMON | {"n_positions": 32, "n_layer": 4, "n_embd": 32, "n_head": 4}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
HIDDEN_SHAPE = COMMON | {
    "max_position_embeddings": 32, "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4,
}  # fmt: skip
LLAMA_SHAPE = HIDDEN_SHAPE | {"num_key_value_heads": 2, "intermediate_size": 44, "rms_norm_eps": 1e-6}
TIED = {"tie_word_embeddings": True}
NEOX_SHAPE = HIDDEN_SHAPE | {"intermediate_size": 128, "rotary_pct": 0.25, "use_parallel_residual": True}

TWINS = {
    "gpt1": (GPT1, "OpenAIGPTLMHeadModel", GPT_SHAPE | NO_DROPOUT, gpt1_names),
    "gpt2": (SHAPE, "GPT2LMHeadModel", GPT_SHAPE | NO_DROPOUT, gpt2_names),
    "llama": (LLAMA, "LlamaForCausalLM", LLAMA_SHAPE, llama_names),
    "tied llama": (LLAMA | {"tied": True}, "LlamaForCausalLM", LLAMA_SHAPE | TIED, llama_names),
    "falcon": (FALCON, "FalconForCausalLM", HIDDEN_SHAPE | {"multi_query": True, "parallel_attn": True}, falcon_names),
    "pythia": (PYTHIA, "GPTNeoXForCausalLM", NEOX_SHAPE, neox_names),
}


@pytest.mark.parametrize("family", TWINS)
def test_logits_and_gradients_equal_those_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    settings, class_name, theirs, in_their_names = TWINS[family]
    model, kind = build(settings), getattr(transformers, class_name)
    twin = kind(kind.config_class(**theirs)).eval()
    # A tied head is one parameter with the embedding, on both sides, and named after that.
    weights = in_their_names({name: p.detach() for name, p in model.named_parameters()}, model.config)
    assert weights.keys() == dict(twin.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(weights[name])

    batch = tokens(3, 32)
    logits_BTV, _ = model(batch)
    expected_BTV = twin(batch).logits
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=1e-5, atol=1e-5)

    direction_BTV = torch.randn(logits_BTV.shape) / logits_BTV.shape[1]
    (logits_BTV * direction_BTV).sum().backward()
    (expected_BTV * direction_BTV).sum().backward()
    assert min(p.grad.norm() for p in model.parameters()) > 1e-3
    gradients = in_their_names({name: p.grad for name, p in model.named_parameters()}, model.config)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


# -- what attention sees


@torch.no_grad()
def test_a_future_token_never_changes_a_past_logit(model):
    batch = tokens(2, 32)
    before, _ = model(batch)
    for changed in (0, 13, 31):
        other = batch.clone()
        other[:, changed] = (other[:, changed] + 1) % 61
        after, _ = model(other)
        assert torch.equal(before[:, :changed], after[:, :changed])
        assert not torch.equal(before[:, changed], after[:, changed])


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 3, 4, 5, 11, 12])
def test_a_banded_layer_sees_exactly_its_band(length):
    torch.manual_seed(0)
    attention = CausalSelfAttention(16, 4, kv_heads=2, band=4)
    x_BTD = torch.randn(2, length, 16)
    before = attention(x_BTD)
    for changed in range(length):
        other = x_BTD.clone()
        other[:, changed] += 1
        moved = (attention(other) != before).any(dim=(0, 2)).tolist()
        assert moved == [changed <= position < changed + 4 for position in range(length)]


def plain_attention(attention: CausalSelfAttention, x_BTD: Tensor, sees: Callable[[int, int, int], bool]) -> Tensor:
    """The formula, head by head: softmax(QK^T / sqrt(K)) V over those keys that `sees(row, query, key)` admits."""
    H, G, K = attention.heads, attention.kv_heads, attention.head_width
    B, T, _ = x_BTD.shape
    rows = attention.query_key_value(x_BTD).split(K, dim=2)
    mask = torch.tensor([[[sees(b, q, k) for k in range(T)] for q in range(T)] for b in range(B)])
    heads = []
    for h in range(H):
        query, key, value = rows[h], rows[H + h * G // H], rows[H + G + h * G // H]
        scores = (query @ key.mT / math.sqrt(K)).masked_fill(~mask, -math.inf)
        heads.append(scores.softmax(-1) @ value)
    return attention.output(torch.cat(heads, dim=2))


NUMBERS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3], [0] * 12 + [1]])


@pytest.mark.parametrize("documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("band", [None, 1, 4, 13, 20])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_a_plain_masked_softmax(kv_heads, band, documents):
    torch.manual_seed(0)
    attention = CausalSelfAttention(16, 4, kv_heads=kv_heads, band=band).double()
    x_BTD = torch.randn(2, 13, 16, dtype=torch.float64)

    def sees(row: int, query: int, key: int) -> bool:
        inside = not documents or NUMBERS[row, query] == NUMBERS[row, key]
        return inside and key <= query and query - key < (band or 99)

    expected = plain_attention(attention, x_BTD, sees)
    given = Documents(NUMBERS, NUMBERS) if documents else None
    torch.testing.assert_close(attention(x_BTD, None, None, given), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_masked_kernel(monkeypatch):
    # Uncompiled, which is what a CPU runs without a compiler.
    for module in (attention_module, documents_module):
        monkeypatch.setattr(module, "compiled", lambda function: function)
    query, key, value = torch.randn(2, 4, 13, 8), torch.randn(2, 2, 13, 8), torch.randn(2, 2, 13, 8)
    documents = Documents(NUMBERS, NUMBERS)
    expected = causal_attention(query, key, value, documents=documents)
    torch.testing.assert_close(flexible_attention(query, key, value, documents), expected)


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("band", [None, 16])
def test_no_tensor_of_size_t_by_t_is_made(band):
    attention = CausalSelfAttention(8, 2, kv_heads=1, band=band)
    with LargestTensor() as largest:
        attention(torch.randn(1, 1024, 8)).sum().backward()
    assert largest.elements <= 1024 * 2 * 16
    with LargestTensor() as largest:
        attention.weights(torch.randn(1, 1024, 8))
    assert largest.elements == 2 * 1024 * 1024


@pytest.mark.parametrize("settings", [{}, {"band": 4}], ids=["dense", "banded"])
@pytest.mark.parametrize("documents", [None, Documents(NUMBERS, NUMBERS)], ids=["", "documents"])
def test_dropout_falls_on_attention_weights_in_training_only(settings, documents):
    attention = CausalSelfAttention(16, 4, dropout=1 - 1e-7, **settings)
    x_BTD = torch.randn(2, 13, 16)
    assert torch.equal(attention(x_BTD, None, None, documents), attention.output.bias.expand(2, 13, 16))
    assert not torch.equal(attention.eval()(x_BTD, None, None, documents), attention.output.bias.expand(2, 13, 16))


@torch.no_grad()
@pytest.mark.parametrize("band", [None, 5])
def test_a_packed_row_has_the_logits_of_each_document_alone(band):
    model = build(LLAMA | {"document_end": END, "band": band})
    pieces = [[3, 4, 5, END], [END], [8, 9, 10, 11, 12, 13, 14, 15, 16, END], [20, 21, 22]]
    packed, _ = model(torch.tensor([list(itertools.chain(*pieces))]))
    alone = [model(torch.tensor([piece]))[0] for piece in pieces]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_document_changes_no_logit_of_another(positions):
    model = build(SHAPE | {"document_end": END, "positions": positions, "band": 5})
    batch = torch.tensor([[3, 4, 5, END, 8, 9, 10, 11, 12, 13, END, 20, 21, 22]])
    other = batch.clone()
    other[0, 4:10] = torch.tensor([30, 31, 32, 33, 34, 35])
    before, after = model(batch)[0], model(other)[0]
    kept = torch.tensor([True] * 4 + [False] * 6 + [False] + [True] * 3)
    assert torch.equal(before[:, kept], after[:, kept])
    assert (before[:, ~kept] != after[:, ~kept]).any(-1).all()


# -- decoding


@torch.no_grad()
@pytest.mark.parametrize(
    "cuts", [[1] * 32, [10, 1, 1, 1, 12, 7], [31, 1], [3, 29]], ids=["by one", "uneven", "prompt and one", "long tail"]
)
def test_cached_decoding_equals_full_forward(model, cuts):
    batch = tokens(3, 32)
    whole, _ = model(batch)
    state, pieces = model.init_state(3, 32), []
    for piece in batch.split(cuts, dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_greedy_decoding_writes_the_same_with_and_without_a_cache(model):
    batch = tokens(3, 12)
    logits, state = model(batch, model.init_state(3, 32))
    cached = [logits[:, -1:].argmax(-1)]
    while len(cached) < 20:
        logits, state = model(cached[-1], state)
        cached.append(logits[:, -1:].argmax(-1))
    for _ in range(20):
        batch = torch.cat([batch, model(batch)[0][:, -1:].argmax(-1)], dim=1)
    assert torch.equal(torch.cat(cached, 1), batch[:, 12:])


@torch.no_grad()
@pytest.mark.parametrize("variant", ["gpt2", "llama", "banded documents"])
def test_a_compiled_model_decodes_20_tokens_with_two_compilations(variant):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = build(VARIANTS[variant])
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    batch = tokens(2, 30)
    whole, _ = model(batch)
    logits, state = compiled(batch[:, :10], model.init_state(2, 32))
    pieces = [logits]
    for position in range(10, 30):
        logits, state = compiled(batch[:, position : position + 1], state)
        pieces.append(logits)
    assert counter.frame_count <= 2
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_selected_rows_decode_as_those_rows_alone(model):
    batch = tokens(3, 20)
    _, state = model(batch[:, :10], model.init_state(3, 32))
    rows = torch.tensor([2, 0, 2, 1])
    chosen = model.select(state, rows)
    after, _ = model(batch[rows, 10:], chosen)
    expected = torch.cat([model(batch[row : row + 1])[0][:, 10:] for row in rows.tolist()])
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=2e-6)
    # The state that they were selected from has not moved.
    torch.testing.assert_close(model(batch[:, 10:], state)[0], model(batch)[0][:, 10:], rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_a_copied_state_goes_its_own_way(model):
    batch = tokens(2, 20)
    _, state = model(batch[:, :10], model.init_state(2, 32))
    first, _ = model(batch[:, 10:], copy.deepcopy(state))
    again, _ = model(batch[:, 10:], state)
    assert torch.equal(first, again)


@torch.no_grad()
def test_a_bf16_model_decodes_with_a_cache(model):
    model = model.bfloat16()
    batch = tokens(2, 16)
    whole, _ = model(batch)
    state, pieces = model.init_state(2, 16), []
    for piece in batch.split([8, 1, 7], dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0.1, atol=0.1)


def test_an_input_longer_than_context_or_cache_is_refused():
    model = build(SHAPE)
    with pytest.raises(ValueError, match="33 tokens are more than the model's context of 32: shorten the input"):
        model(tokens(1, 33))
    _, state = model(tokens(1, 20), model.init_state(1, 24))
    with pytest.raises(ValueError, match="25 tokens do not fit a cache of 24: call init_state with a larger length"):
        model(tokens(1, 20)[:, :5], state)


# -- what else a model answers


@torch.no_grad()
def test_attention_maps_are_probabilities_that_reproduce_the_output(model):
    batch = tokens(2, 20)
    seen = []
    hooks = [
        attention.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
        for attention in model.attentions
    ]
    maps = model.attention_maps(batch)["self"]
    for hook in hooks:
        hook.remove()
    assert [tuple(weights.shape) for weights in maps] == [(2, 4, 20, 20)] * 4
    for weights_BHTS, (attention, x_BTD, y_BTD) in zip(maps, seen, strict=True):
        torch.testing.assert_close(weights_BHTS.sum(-1), torch.ones(2, 4, 20))
        G, K = attention.kv_heads, attention.head_width
        value_BTGK = attention.query_key_value(x_BTD)[..., -G * K :].unflatten(2, (G, K))
        value_BTHK = value_BTGK.repeat_interleave(4 // G, dim=2)
        attended_BTD = torch.einsum("bhts,bshk->bthk", weights_BHTS, value_BTHK).flatten(2)
        torch.testing.assert_close(attention.output(attended_BTD), y_BTD)


@torch.no_grad()
def test_the_head_reads_the_hidden_states(model):
    batch = tokens(2, 20)
    x_BTD, _ = model.hidden(batch)
    assert x_BTD.shape == (2, 20, 32)
    assert torch.equal(model.head(x_BTD), model(batch)[0])


STARTS = {
    "gpt1": (GPT1, {"position_embedding": 0.02, "attention.output": 0.02, "mlp.output": 0.02}),
    "gpt2": (SHAPE, {"position_embedding": 0.01, "attention.output": 0.02 / 8**0.5, "mlp.output": 0.02 / 8**0.5}),
    "llama": (
        LLAMA | {"init_std": 0.03, "scale_residual_init": False},
        {"head": 0.03, "mlp.gate": 0.03, "mlp.output": 0.03},
    ),
    "pythia": (PYTHIA | {"init_std": 0.05, "residual_std": 0.03}, {"attention.output": 0.03, "mlp.output": 0.03}),
}


@pytest.mark.parametrize("family", STARTS)
def test_weights_start_as_configured(family):
    torch.manual_seed(0)
    settings, others = STARTS[family]
    config = TransformerConfig(**settings | {"vocab_size": 2000, "context": 400, "width": 128, "hidden": 256})
    for name, module in config.build().named_modules():
        short = name.split(".", 2)[-1] if name.startswith("blocks.") else name
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.std().item() == pytest.approx(others.get(short, config.init_std), rel=0.03), name
            assert abs(module.weight.mean().item()) < 0.001
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            assert (module.weight == 1).all()
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all()


def test_flops_count_what_multiplies():
    # By hand: 2 FLOPs a weight forward and 4 backward; scores and sums are 2 x 2 x width x span forward, twice that backward.
    attention, mlp = 32 * (32 + 2 * 16) + 32 * 32, 3 * 32 * 44
    gains = 2 * 32
    llama = TransformerConfig(**LLAMA).build()
    weights = 4 * (attention + mlp + gains) + 32 + 61 * 32
    assert llama.flops_per_token(32) == 6 * weights + 4 * 12 * 32 * 32
    # Tying removes the table that was only looked up.
    tied = TransformerConfig(**LLAMA | {"tied": True}).build()
    assert tied.flops_per_token(32) == llama.flops_per_token(32)
    # Every other layer looks back 5 tokens instead of 32.
    banded = TransformerConfig(**LLAMA | {"band": 5}).build()
    assert banded.flops_per_token(32) == 6 * weights + 2 * 12 * 32 * (32 + 5)
    assert banded.flops_per_token(3) == 6 * weights + 4 * 12 * 32 * 3


@pytest.mark.parametrize(("every", "bands"), [(1, [5, 5, 5, 5]), (2, [None, 5, None, 5]), (3, [None, None, 5, None])])
def test_every_so_manieth_layer_is_banded(every, bands):
    model = TransformerConfig(**SHAPE | {"band": 5, "band_every": every}).build()
    assert [attention.band for attention in model.attentions] == bands


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 33}, "width 33 is not divisible by 4 heads: change one of them or give head_width"),
        ({"kv_heads": 3}, "4 heads cannot share 3 kv_heads evenly"),
        ({"kv_heads": 0}, "kv_heads is 0: it must be at least 1"),
        ({"shared_norm": True}, "shared_norm is true, but"),
        ({"parallel": True, "norm_order": "post"}, "norm_order is post, but parallel"),
        ({"positions": "rotary", "rotary_fraction": 0.4}, "turns 3"),
        ({"positions": "rotary", "rotary_fraction": 0.1}, "turns 0"),
        ({"positions": "rotary", "rotary_fraction": 1.5}, "must lie in (0, 1]"),
        ({"band": 0}, "band is 0: it must be at least 1"),
        ({"band_every": 0}, "band_every is 0"),
        ({"document_end": 61}, "document_end is 61: it must be a token id below vocab_size 61"),
        ({"norm": "batchnorm"}, "norm is batchnorm: it must be one of layernorm, rmsnorm"),
        ({"activation": "relu"}, "activation is relu: it must be one of gelu, gelu_tanh, swiglu"),
        ({"init_std": 0.0}, "init_std is 0.0: it must be positive"),
    ],
)
def test_an_impossible_combination_is_refused_with_the_value(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        TransformerConfig(**SHAPE | settings)


def test_documents_are_numbered_across_calls():
    cache = DocumentCache(1, 8, END, device="cpu")
    first = cache.append(torch.tensor([[1, END, 2]]), torch.arange(3))
    assert first.queries_BT.tolist() == [[0, 0, 1]]
    second = cache.append(torch.tensor([[END, 3, END]]), torch.arange(3, 6))
    assert second.queries_BT.tolist() == [[1, 2, 2]]
    assert second.keys_BS[0, :6].tolist() == [0, 0, 1, 1, 2, 2]
