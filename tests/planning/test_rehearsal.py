"""What a rehearsed step keeps is what autograd keeps of a real one, whose saved tensors are counted; and what the literature counts."""

import pytest
import torch

from pipeline.layers.head import Targets
from pipeline.models.base import EncoderDecoder
from pipeline.models.classifier import ClassifierConfig
from pipeline.models.recurrent import GRUConfig, LSTMConfig, RNNConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig
from pipeline.planning.rehearsal import at_depth, rehearse, rehearse_any_depth

B, T = 4, 64
GPT = {"vocab_size": 512, "context": T, "layers": 2, "width": 64, "heads": 4}
PAIRS = {"vocab_size": 512, "width": 64}
EXACT, NEARLY = 1e-3, 0.09
"""An LSTM's workspace is padded by its library, and a head shared by query heads is laid out anew by one kernel."""

CONFIGS = {
    "gpt": (TransformerConfig(**GPT), EXACT),
    "gpt with dropout": (TransformerConfig(**GPT, dropout=0.1), EXACT),
    "gpt-1": (TransformerConfig(**GPT, norm_order="post", activation="gelu"), EXACT),
    "llama": (
        TransformerConfig(**GPT, kv_heads=2, norm="rmsnorm", positions="rotary", activation="swiglu", bias=False, tied=False), NEARLY
    ),
    "falcon": (TransformerConfig(**GPT, kv_heads=1, positions="rotary", parallel=True, shared_norm=True), NEARLY),
    "banded": (TransformerConfig(**GPT, band=16), EXACT),
    "documents apart": (TransformerConfig(**GPT, document_end=0), EXACT),
    "lstm": (LSTMConfig(vocab_size=512, layers=2, width=64, dropout=0.1), NEARLY),
    "variational lstm": (LSTMConfig(vocab_size=512, layers=2, width=64, dropout=0.1, variational=True), NEARLY),
    "gru": (GRUConfig(vocab_size=512, layers=2, width=64), NEARLY),
    "rnn": (RNNConfig(vocab_size=512, layers=2, width=64), NEARLY),
    "seq2seq transformer": (TransformerSeq2SeqConfig(**PAIRS, context=T, encoder_layers=2, decoder_layers=2, heads=4), EXACT),
    "seq2seq with dropout": (
        TransformerSeq2SeqConfig(
            **PAIRS, context=T, encoder_layers=1, decoder_layers=3, heads=4, dropout=0.1, norm_order="pre", positions="learned"
        ),
        EXACT,
    ),
    "luong": (RecurrentSeq2SeqConfig(**PAIRS, cell="lstm", layers=2), NEARLY),
    "bahdanau": (RecurrentSeq2SeqConfig(**PAIRS, cell="gru", layers=1, attention="additive", bidirectional=True), NEARLY),
    "classifier": (ClassifierConfig(vocab_size=512, classes=512, body=TransformerConfig(**GPT)), EXACT),
}  # fmt: skip


def kept_by_autograd(config, precision: str, every: int = 0) -> int:
    """Bytes of the distinct storages that the backward pass of a real step waits for, parameters apart."""
    torch.manual_seed(0)
    model = config.build().train()
    if precision == "bf16-true":
        model = model.bfloat16()
    if every:
        model.recompute_blocks(every)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens_BT = torch.randint(0, 512, (B, T))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        state = model.encode(tokens_BT) if isinstance(model, EncoderDecoder) else None
        scores, state = model(tokens_BT, state, Targets(tokens_BT))
        loss = scores.loss / B
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_rehearsal_keeps_the_bytes_that_autograd_keeps(name, precision):
    config, tolerance = CONFIGS[name]
    rehearsed = rehearse(config, B, T, precision, "cpu")
    kept = rehearsed.saved + rehearsed.copies + rehearsed.saved_by_head
    assert kept == pytest.approx(kept_by_autograd(config, precision), rel=tolerance)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_with_recomputed_blocks_too(precision, every):
    config = TransformerConfig(**GPT)
    rehearsed = rehearse(config, B, T, precision, "cpu", checkpoint_blocks=every)
    kept = rehearsed.saved + rehearsed.copies + rehearsed.saved_by_head
    assert kept == pytest.approx(kept_by_autograd(config, precision, every), rel=EXACT)


def test_a_blocks_activations_are_those_of_korthikanti_without_the_matrix_of_scores():
    # Korthikanti et al. 2022, section 4.1: s b h (34 + 5 a s / h) bytes in half precision with dropout, of which 5 a s / h are the
    # scores of all pairs, which a fused kernel does not keep. It keeps a number of 4 bytes for each query and head, and each of two
    # norms keeps two numbers of a token.
    width, heads, sequences, length = 256, 4, 2, 128
    config = TransformerConfig(vocab_size=64, context=length, layers=2, width=width, heads=heads, dropout=0.1)
    two, four = (rehearse(at_depth(config, layers), sequences, length, "bf16-true", "cuda") for layers in (2, 4))
    tokens = sequences * length
    assert (four.saved - two.saved) / 2 == tokens * width * 34 + tokens * heads * 4 + tokens * 2 * 2 * 2


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_deep_model_is_reckoned_from_two_shallow_ones(precision, every):
    config = TransformerConfig(**{**GPT, "layers": 9}, band=16)
    whole = rehearse(config, B, T, precision, "cpu", checkpoint_blocks=every)
    reckoned = rehearse_any_depth(config, B, T, precision, "cpu", checkpoint_blocks=every)
    for name in ("saved", "copies", "gradients", "peak", "peak_without_gradients"):
        assert getattr(reckoned, name) == pytest.approx(getattr(whole, name), rel=0.02), name
    assert sum(reckoned.operations.values()) == pytest.approx(sum(whole.operations.values()))


def test_the_operations_of_a_rehearsal_have_the_flops_of_the_formula():
    config = TransformerConfig(**GPT)
    with torch.device("meta"):
        expected = config.build().flops_per_token(T) * B * T
    counted = 0
    for operation, times in rehearse(config, B, T, "32-true", "cpu").operations.items():
        if operation.kind == "matmul":
            batch, rows, inner, columns = operation.sizes
            counted += times * 2 * batch * rows * inner * columns
        elif operation.kind == "attention":
            rows, queries, keys, width = operation.sizes
            # Two products forward and twice as many backward.
            counted += times * 4 * rows * queries * keys * width * (2 if operation.backward else 1)
    assert counted == pytest.approx(expected, rel=0.03)


def test_gradients_are_as_large_as_the_parameters():
    config = TransformerConfig(**GPT, tied=False)
    with torch.device("meta"):
        parameters = config.build().parameter_counts()["total"]
    rehearsed = rehearse(config, B, T, "32-true", "cpu")
    # The head's gradient is counted as what the head keeps.
    assert rehearsed.gradients + 4 * 512 * 64 == 4 * parameters
