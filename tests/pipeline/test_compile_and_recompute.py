"""torch.compile and activation checkpointing change neither the losses nor the names of what is saved."""

import pytest
import torch
from tiny_runs import GPT, LSTM, losses, write_config
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pipeline.checkpoint import find_checkpoint, open_state, read_weights
from pipeline.cli import main
from pipeline.layers.head import Targets
from pipeline.models.base import EncoderDecoder, LanguageModel
from pipeline.models.classifier import ClassifierConfig
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig

# B batch, T time, S source time

V, B, T = 64, 3, 24
TRANSFORMER = TransformerConfig(vocab_size=V, context=T, layers=4, width=32, heads=2, dropout=0.2)
WITH_BLOCKS = {
    "transformer": TRANSFORMER,
    "seq2seq_transformer": TransformerSeq2SeqConfig(
        vocab_size=V, context=T, encoder_layers=2, decoder_layers=2, width=32, heads=2, dropout=0.2
    ),
    "classifier": ClassifierConfig(vocab_size=V, classes=3, body=TRANSFORMER),
}
COMPILED = {
    "transformer": TransformerConfig(vocab_size=V, context=T, layers=2, width=32, heads=2),
    "lstm": LSTMConfig(vocab_size=V, layers=2, width=32),
    "seq2seq_transformer": TransformerSeq2SeqConfig(
        vocab_size=V, context=T, encoder_layers=1, decoder_layers=1, width=32, heads=2
    ),
    "seq2seq_recurrent": RecurrentSeq2SeqConfig(vocab_size=V, layers=1, width=32, cell="gru"),
}


def loss_of(model: LanguageModel, tokens_BT: Tensor, source_BS: Tensor) -> Tensor:
    torch.manual_seed(1)
    state = model.encode(source_BS) if isinstance(model, EncoderDecoder) else None
    return model(tokens_BT, state, Targets(tokens_BT % 3))[0].loss


def step(model: LanguageModel, length: int = T) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss and gradients of a batch, and the bytes that the backward pass found kept for it."""
    generator = torch.Generator().manual_seed(length)
    tokens_BT, source_BS = (torch.randint(0, V, (B, length), generator=generator) for _ in range(2))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, tokens_BT, source_BS)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("config", WITH_BLOCKS.values(), ids=WITH_BLOCKS)
def test_recomputed_blocks_keep_less_and_change_no_bit_of_loss_or_gradient(config, every):
    torch.manual_seed(0)
    model = config.build().train()
    loss, gradients, kept = step(model)
    model.recompute_blocks(every)
    again, of_recomputed, kept_now = step(model)
    assert torch.equal(again, loss)
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in of_recomputed.items())
    assert of_recomputed.keys() == gradients.keys()
    assert kept_now < (0.5 if every == 1 else 0.8) * kept


def test_nothing_is_recomputed_where_no_gradient_is_wanted():
    model = TRANSFORMER.build().eval()
    model.recompute_blocks(1)
    with torch.no_grad():
        logits_BTV, _ = model(torch.zeros(1, T, dtype=torch.int64))
    assert logits_BTV.shape == (1, T, V)


def test_recomputation_is_refused_where_there_are_no_blocks(tokens_folder, tmp_path, capsys):
    config = write_config(tmp_path / "c.yaml", tokens_folder, LSTM, model__checkpoint_blocks=2)
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(["fit", "--config", str(config)]))
    assert stopped.value.code == 2
    assert "checkpoint_blocks is 2, but a lstm has no blocks" in capsys.readouterr().err


def test_a_run_with_recomputed_blocks_has_the_losses_of_one_without(tokens_folder, tmp_path):
    logged = [
        losses(write_config(tmp_path / str(every) / "c.yaml", tokens_folder, GPT, model__checkpoint_blocks=every))
        for every in (0, 2)
    ]
    assert logged[0] == logged[1]


@pytest.mark.slow
@pytest.mark.parametrize("config", COMPILED.values(), ids=COMPILED)
def test_a_compiled_model_gives_the_same_losses_and_gradients_at_lengths_that_vary(config):
    torch.manual_seed(0)
    model = config.build().train()
    names = [*model.state_dict()]
    expected = [step(model, length) for length in (T, T - 5, T - 9)]
    model.compile()
    assert [*model.state_dict()] == names
    for length, (loss, gradients, _) in zip((T, T - 5, T - 9), expected, strict=True):
        compiled_loss, of_compiled, _ = step(model, length)
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
        for name, gradient in of_compiled.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_compiled_model_can_recompute_its_blocks():
    config = TransformerConfig(vocab_size=V, context=T, layers=2, width=32, heads=2)
    torch.manual_seed(0)
    model = config.build().train()
    loss, gradients, _ = step(model)
    model.recompute_blocks(1)
    model.compile()
    compiled_loss, of_compiled, _ = step(model)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
    for name, gradient in of_compiled.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_and_the_saved_names_of_one_that_is_not(tokens_folder, tmp_path):
    logged, names = [], []
    for compiled in (False, True):
        config = tmp_path / str(compiled) / "c.yaml"
        options = {"trainer__precision": "32-true", "model__compile": compiled}
        logged.append(losses(write_config(config, tokens_folder, GPT, **options)))
        names.append(sorted(read_weights(open_state(find_checkpoint(config.parent / "run", "last")))))
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)
    assert len(logged[0]) == 10
    assert names[0] == names[1]
