"""The encoder-decoder transformer against torch's own and the paper's formulas; padding, caching, sizes and first weights."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from pipeline.layers.cross_attention import CrossAttention
from pipeline.layers.position import Sinusoids
from pipeline.models.base import NO_TOKEN
from pipeline.models.seq2seq_transformer import TransformerSeq2Seq, TransformerSeq2SeqConfig

# B batch, T time, S source time, D width, V vocabulary

V = 60
PRESETS = Path(__file__).parents[2] / "configs" / "model"
VARIANTS = {
    "paper": {},
    "pre-norm": {"norm_order": "pre", "activation": "gelu"},
    "learned, untied, no biases": {"positions": "learned", "tied": False, "bias": False},
}


def config(**settings) -> TransformerSeq2SeqConfig:
    sizes = {"vocab_size": V, "context": 24, "encoder_layers": 2, "decoder_layers": 3, "width": 32, "heads": 4}
    return TransformerSeq2SeqConfig(**{**sizes, **settings})


@pytest.fixture(params=VARIANTS)
def model(request) -> TransformerSeq2Seq:
    torch.manual_seed(0)
    return config(**VARIANTS[request.param]).build().eval()


def tokens(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randint(0, V, (rows, columns), generator=torch.Generator().manual_seed(seed))


def sources(rows: int = 3, columns: int = 9) -> Tensor:
    """Row r ends 2r tokens before the last column."""
    source_BS = tokens(rows, columns, seed=2)
    for row in range(1, rows):
        source_BS[row, -2 * row :] = NO_TOKEN
    return source_BS


def predict(model: TransformerSeq2Seq, tokens_BT: Tensor, source_BS: Tensor) -> Tensor:
    return model(tokens_BT, model.encode(source_BS))[0]


def formula(positions: int, width: int) -> Tensor:
    """Section 3.5 of the paper, a number at a time."""
    rows = []
    for p in range(positions):
        angles = [p / 10000 ** (2 * (d // 2) / width) for d in range(width)]
        rows.append([math.cos(angle) if d % 2 else math.sin(angle) for d, angle in enumerate(angles)])
    return torch.tensor(rows)


def torch_transformer(model: TransformerSeq2Seq) -> nn.Transformer:
    """`torch.nn.Transformer` with the weights of the model."""
    c = model.config
    options = {
        "dropout": 0.0, "activation": c.activation, "batch_first": True, "norm_first": c.norm_order == "pre",
        "bias": c.bias,
    }  # fmt: skip
    shape = (c.width, c.heads, c.hidden or 4 * c.width)
    encoder_layer, decoder_layer = (
        nn.TransformerEncoderLayer(*shape, **options),
        nn.TransformerDecoderLayer(*shape, **options),
    )
    encoder = nn.TransformerEncoder(encoder_layer, c.encoder_layers, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(decoder_layer, c.decoder_layers)
    reference = nn.Transformer(c.width, c.heads, batch_first=True, custom_encoder=encoder, custom_decoder=decoder)

    def copy(target, *parts: nn.Module):
        """One module, or several whose rows follow each other in torch's."""
        for name in ("weight", "bias"):
            values = [getattr(part, name) for part in parts if getattr(part, name, None) is not None]
            if values:  # Set rather than filled: torch's layers without biases have norms without them too.
                setattr(target, name if hasattr(target, name) else f"in_proj_{name}", nn.Parameter(torch.cat(values)))

    for theirs, ours in zip(encoder.layers, model.encoder, strict=True):
        copy(theirs.self_attn, ours.attention.query, ours.attention.key_value)
    for theirs, ours in zip(decoder.layers, model.decoder, strict=True):
        copy(theirs.self_attn, ours.attention.query_key_value)
        copy(theirs.multihead_attn, ours.cross_attention.query, ours.cross_attention.key_value)
        copy(theirs.multihead_attn.out_proj, ours.cross_attention.output)
    for theirs, ours in zip([*encoder.layers, *decoder.layers], [*model.encoder, *model.decoder], strict=True):
        copy(theirs.self_attn.out_proj, ours.attention.output)
        copy(theirs.linear1, ours.mlp.expand)
        copy(theirs.linear2, ours.mlp.output)
        residuals = [m for name, m in ours.named_children() if name.endswith("residual")]
        for number, residual in enumerate(residuals, start=1):
            copy(getattr(theirs, f"norm{number}"), residual.norm)
    if c.norm_order == "pre":
        encoder.norm, decoder.norm = model.encoder_norm, model.decoder_norm
    return reference


def test_logits_and_gradients_equal_those_of_torch_nn_transformer(model):
    for p in model.parameters():  # Biases and gains that are not 0 and 1, so that each has to be in its place.
        p.data += 0.1 * torch.randn_like(p)
    tokens_BT, source_BS, width = tokens(3, 7), sources(), model.config.width
    logits_BTV = predict(model, tokens_BT, source_BS)
    logits_BTV.square().mean().backward()

    reference = torch_transformer(model).eval()
    source_table, target_table, head = (
        part.weight.detach().clone().requires_grad_()
        for part in (model.source_embedding.tokens, model.target_embedding.tokens, model.head)
    )
    source_positions, target_positions = (
        part.weight.detach() if model.config.positions == "learned" else formula(24, width)
        for part in (model.source_embedding.positions, model.target_embedding.positions)
    )
    padded = source_BS == NO_TOKEN
    decoded_BTD = reference(
        source_table[source_BS.clamp(min=0)] * math.sqrt(width) + source_positions[:9],
        target_table[tokens_BT] * math.sqrt(width) + target_positions[:7],
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(7), tgt_is_causal=True,
        src_key_padding_mask=padded, memory_key_padding_mask=padded,
    )  # fmt: skip
    expected_BTV = decoded_BTD @ head.T
    expected_BTV.square().mean().backward()

    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=1e-5, atol=1e-5)
    if model.config.tied:
        expected = [source_table.grad + target_table.grad + head.grad]
        found = [model.head.weight.grad]
    else:
        expected = [source_table.grad, target_table.grad, head.grad]
        found = [m.weight.grad for m in (model.source_embedding.tokens, model.target_embedding.tokens, model.head)]
    found += [model.encoder[0].attention.output.weight.grad, model.decoder[2].mlp.expand.weight.grad]
    expected += [
        reference.encoder.layers[0].self_attn.out_proj.weight.grad,
        reference.decoder.layers[2].linear1.weight.grad,
    ]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sinusoids_equal_the_formula_of_the_paper():
    x_BTD = torch.randn(2, 40, 32)
    torch.testing.assert_close(Sinusoids(32)(x_BTD, torch.arange(40)), x_BTD + formula(40, 32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_cross_attention_and_its_weights_equal_torchs(padded):
    ours, theirs = CrossAttention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.in_proj_weight.data.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
    theirs.in_proj_bias.data.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    x_BTD, memory_BSD = torch.randn(3, 5, 32), torch.randn(3, 9, 32)
    visible_BS = sources() != NO_TOKEN if padded else torch.ones(3, 9, dtype=torch.bool)
    memory = ours.read(memory_BSD, visible_BS[:, None, None] if padded else None)
    output, weights = theirs(x_BTD, memory_BSD, memory_BSD, key_padding_mask=~visible_BS, average_attn_weights=False)
    torch.testing.assert_close(ours(x_BTD, memory), output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.weights(x_BTD, memory), weights, rtol=1e-5, atol=1e-6)


def test_padding_changes_no_logit(model):
    tokens_BT, source_BS = tokens(3, 7), sources()
    before = predict(model, tokens_BT, source_BS)
    torch.testing.assert_close(
        predict(model, tokens_BT, F.pad(source_BS, (0, 5), value=NO_TOKEN)), before, rtol=1e-5, atol=1e-5
    )
    for row in range(3):
        alone = predict(model, tokens_BT[row : row + 1], source_BS[row : row + 1, : 9 - 2 * row])
        torch.testing.assert_close(alone, before[row : row + 1], rtol=1e-5, atol=1e-5)


def test_padding_changes_no_gradient(model):
    gradients = []
    for extra in (0, 5):
        model.zero_grad()
        logits_BTV = predict(model, tokens(3, 7), F.pad(sources(), (0, extra), value=NO_TOKEN))
        F.cross_entropy(logits_BTV.flatten(0, 1), tokens(3, 7, seed=3).flatten()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if "positions" not in name})
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_an_empty_source_gives_numbers_that_do_not_depend_on_its_padding(model):
    source_BS = sources()
    source_BS[1] = NO_TOKEN
    logits_BTV = predict(model, tokens(3, 7), source_BS)
    assert logits_BTV.isfinite().all()
    alone = predict(model, tokens(3, 7)[1:2], torch.full((1, 2), NO_TOKEN))
    torch.testing.assert_close(logits_BTV[1:2], alone, rtol=1e-5, atol=1e-5)
    logits_BTV.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 1, 5], [11, 1]], ids=["by one", "uneven", "prompt and one"])
def test_cached_decoding_equals_full_forward(model, cuts):
    tokens_BT, source_BS = tokens(3, 12), sources()
    state, pieces = model.init_state(3, 12, source_BS), []
    for piece in tokens_BT.split(cuts, dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), predict(model, tokens_BT, source_BS), rtol=1e-5, atol=1e-5)


def test_a_cached_decode_reads_the_source_once(model):
    read = []
    for block in model.decoder:
        block.cross_attention.key_value.register_forward_hook(lambda *_: read.append(1))
    state = model.init_state(3, 4, sources())
    for piece in tokens(3, 4).split(1, dim=1):
        _, state = model(piece, state)
    assert len(read) == model.config.decoder_layers


def test_a_compiled_decode_compiles_at_most_twice():
    """Once for the first token and once for all others."""
    model = config(positions="learned").build().eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter)
    tokens_BT, source_BS = tokens(3, 20), sources()
    state, pieces = model.init_state(3, 20, source_BS), []
    with torch.no_grad():
        for piece in tokens_BT.split(1, dim=1):
            logits, state = compiled(piece, state)
            pieces.append(logits)
    assert counter.frame_count <= 2
    torch.testing.assert_close(torch.cat(pieces, 1), predict(model, tokens_BT, source_BS), rtol=1e-5, atol=1e-5)


def test_a_future_token_never_changes_a_past_logit_and_every_source_token_changes_all(model):
    tokens_BT, source_BS = tokens(2, 8), tokens(2, 6, seed=2)
    before = predict(model, tokens_BT, source_BS)
    later = tokens_BT.clone()
    later[:, 5] = (later[:, 5] + 1) % V
    after = predict(model, later, source_BS)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()
    for column in range(6):
        other = source_BS.clone()
        other[:, column] = (other[:, column] + 1) % V
        assert (predict(model, tokens_BT, other) != before).any(-1).all()


def test_selected_rows_go_on_as_those_rows_alone(model):
    tokens_BT, source_BS, rows_B = tokens(3, 8), sources(), torch.tensor([2, 0, 2, 1])
    _, state = model(tokens_BT[:, :5], model.init_state(3, 8, source_BS))
    chosen = model.select(state, rows_B)
    after, _ = model(tokens_BT[rows_B, 5:], chosen)
    expected = predict(model, tokens_BT, source_BS)[rows_B, 5:]
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    # The state that was selected from has not moved.
    torch.testing.assert_close(model(tokens_BT[:, 5:], state)[0], expected[[1, 3, 0]], rtol=1e-5, atol=1e-5)
    whole = model.select(model.encode(source_BS), rows_B)
    torch.testing.assert_close(model(tokens_BT[rows_B], whole)[0][:, 5:], expected, rtol=1e-5, atol=1e-5)


def test_attention_maps_are_probabilities_over_what_may_be_seen(model):
    tokens_BT, source_BS = tokens(3, 7), sources()
    before = predict(model, tokens_BT, source_BS)
    maps = model.attention_maps(tokens_BT, source_BS)
    assert {kind: (len(layers), layers[0].shape) for kind, layers in maps.items()} == {
        "encoder": (2, (3, 4, 9, 9)),
        "self": (3, (3, 4, 7, 7)),
        "cross": (3, (3, 4, 7, 9)),
    }
    for weights_BHTS in (weights for layers in maps.values() for weights in layers):
        torch.testing.assert_close(weights_BHTS.sum(-1), torch.ones_like(weights_BHTS[..., 0]))
    padded = (source_BS == NO_TOKEN)[:, None, None]
    assert all((weights * padded == 0).all() for kind in ("encoder", "cross") for weights in maps[kind])
    assert all((weights.triu(1) == 0).all() for weights in maps["self"])
    # Looking leaves nothing behind.
    assert torch.equal(predict(model, tokens_BT, source_BS), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("tied", [True, False])
def test_weights_start_as_in_the_papers_code(tied):
    torch.manual_seed(0)
    model = config(vocab_size=3000, width=128, tied=tied, positions="learned", context=600).build()
    square, expand = math.sqrt(2 / (128 + 128)), math.sqrt(2 / (128 + 512))
    expected = {
        "source_embedding.tokens.weight": 128**-0.5,
        "target_embedding.tokens.weight": 128**-0.5,
        "target_embedding.positions.weight": 128**-0.5,
        "head.weight": 128**-0.5,
        "encoder.0.attention.query.weight": square,
        "encoder.0.attention.key_value.weight": square,
        "encoder.1.attention.output.weight": square,
        "decoder.1.attention.query_key_value.weight": square,
        "decoder.2.cross_attention.key_value.weight": square,
        "encoder.0.mlp.expand.weight": expand,
        "decoder.0.mlp.output.weight": expand,
    }
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, deviation in expected.items():
        assert parameters[name].std().item() == pytest.approx(deviation, rel=0.03), name
    # Uniform ends at sqrt(3) deviations: normal weights would go far beyond.
    assert parameters["decoder.1.attention.query_key_value.weight"].abs().max() <= math.sqrt(3) * square
    assert all((p == 0).all() for name, p in parameters.items() if name.endswith("bias"))
    shared = {
        parameters[f"{name}.weight"].data_ptr()
        for name in ("source_embedding.tokens", "target_embedding.tokens", "head")
    }
    assert len(shared) == (1 if tied else 3)


@pytest.mark.parametrize("settings", [{}, {"norm_order": "pre"}, {"tied": False}], ids=str)
def test_the_untrained_loss_is_ln_v_and_a_half(settings):
    # A normed vector times rows N(0, 1/sqrt(D)) gives logits N(0, 1): the mean of exp is then sqrt(e), not 1.
    torch.manual_seed(0)
    model = config(vocab_size=1000, context=32, **settings).build().eval()
    tokens_BT, source_BS, targets_BT = torch.randint(0, 1000, (3, 16, 24))
    loss = F.cross_entropy(predict(model, tokens_BT, source_BS).flatten(0, 1), targets_BT.flatten())
    assert loss.item() == pytest.approx(math.log(1000) + 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("preset", "exact", "published"), [("base", 63_082_496, 65e6), ("big", 214_245_376, 213e6)], ids=["base", "big"]
)
def test_the_papers_models_have_their_size(preset, exact, published):
    settings = yaml.safe_load((PRESETS / f"seq2seq_transformer_{preset}.yaml").read_text())["model"]["architecture"]
    with torch.device("meta"):
        model = TransformerSeq2SeqConfig(**settings["init_args"]).build()
    d, hidden = model.config.width, 4 * model.config.width
    attention, mlp, norm = 4 * (d * d + d), 2 * d * hidden + hidden + d, 2 * d
    blocks = 6 * (attention + mlp + 2 * norm) + 6 * (2 * attention + mlp + 3 * norm)
    assert model.parameter_counts() == {"total": 37000 * d + blocks, "non_embedding": blocks}
    assert model.parameter_counts()["total"] == exact == pytest.approx(published, rel=0.03)
    # Scores and sums: 12 x width x context for each block of the encoder, twice that for each of the decoder.
    assert model.flops_per_token(256) == 6 * exact + 12 * 18 * d * 256


def test_only_matrices_that_multiply_cost_flops():
    model = config(tied=False, positions="learned").build()
    looked_up = 2 * V * 32 + 2 * 24 * 32
    assert model.flops_per_token(0) == 6 * (model.parameter_counts()["total"] - looked_up)


def test_sinusoids_go_beyond_the_context_and_learned_positions_do_not():
    assert predict(config().build(), tokens(1, 30), tokens(1, 30)).isfinite().all()
    learned = config(positions="learned").build()
    with pytest.raises(ValueError, match="25 tokens are more than the model's context of 24: shorten the input"):
        learned.encode(tokens(1, 25))
    state = learned.init_state(1, 24, tokens(1, 5))
    _, state = learned(tokens(1, 24), state)
    with pytest.raises(ValueError, match="25 tokens do not fit"):
        learned(tokens(1, 1), state)
    with pytest.raises(ValueError, match="shorten the input"):
        learned(tokens(1, 25), learned.encode(tokens(1, 5)))


def test_it_runs_in_bf16(model):
    exact = predict(model, tokens(3, 7), sources())
    rounded = predict(model.bfloat16(), tokens(3, 7), sources())
    assert rounded.dtype == torch.bfloat16
    assert F.cosine_similarity(rounded.float().flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("variant", ["paper", "pre-norm"])
def test_one_batch_is_overfitted_to_below_0_05(variant):
    torch.manual_seed(0)
    model = config(**VARIANTS[variant]).build()
    source_BS, targets_BT = sources(), tokens(3, 8, seed=5)
    tokens_BT = F.pad(targets_BT[:, :-1], (1, 0), value=0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(150):
        loss = F.cross_entropy(predict(model, tokens_BT, source_BS).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_a_prediction_without_a_source_is_refused():
    model = config().build()
    with pytest.raises(ValueError, match="encode or init_state"):
        model(tokens(1, 3))
    with pytest.raises(ValueError, match="2 targets need as many sources"):
        model.init_state(2, 5, tokens(1, 3))
    with pytest.raises(ValueError, match="source_BS"):
        model.attention_maps(tokens(1, 3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 30}, "not divisible by 4 heads"),
        ({"width": 27, "heads": 3}, "27 is odd"),
        ({"encoder_layers": 0}, "encoder_layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_an_impossible_model_is_refused_with_the_value(settings, words):
    with pytest.raises(ValueError, match=words):
        config(**settings)
