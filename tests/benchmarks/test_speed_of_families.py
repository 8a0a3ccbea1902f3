"""How fast each family trains beside the same model of plain torch.nn, and how cached generation grows with the length.

Every figure is a ratio of the two sides' medians, measured by turns in one process; run it on an idle machine: `make bench`.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.process_memory import keep_freed_memory
from pipeline.generation.sampling import generate
from pipeline.loss import token_nll
from pipeline.models.base import EncoderDecoder, LanguageModel
from pipeline.models.recurrent import GRUConfig, LSTMConfig, RNNConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig
from pipeline.optim import AdamW

pytestmark = pytest.mark.benchmark

V, D, LAYERS, HEADS, B, T = 4096, 256, 2, 4, 16, 128
ROUNDS = 30


class PlainRecurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.layers = kind(D, D, LAYERS, batch_first=True)
        self.head = nn.Linear(D, V)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor, source_BS: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens_BT))[0])


class PlainDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        layer = nn.TransformerEncoderLayer(D, HEADS, 4 * D, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(D), enable_nested_tensor=False)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor, source_BS: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        x = self.embedding(tokens_BT) + self.positions.weight
        return self.head(self.layers(x, mask=mask, is_causal=True))


class PlainTranslator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        self.layers = nn.Transformer(D, HEADS, LAYERS, LAYERS, 4 * D, 0.0, batch_first=True)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor, source_BS: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        source, target = (self.embedding(ids) + self.positions.weight for ids in (source_BS, tokens_BT))
        return self.head(self.layers(source, target, tgt_mask=mask, tgt_is_causal=True))


class PlainRecurrentTranslator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.encoder, self.decoder = (nn.GRU(D, D, LAYERS, batch_first=True) for _ in range(2))
        self.combine = nn.Linear(2 * D, D)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor, source_BS: Tensor) -> Tensor:
        memory, hidden = self.encoder(self.embedding(source_BS))
        states, _ = self.decoder(self.embedding(tokens_BT), hidden)
        context = (states @ memory.transpose(1, 2)).softmax(-1) @ memory
        return self.head(torch.tanh(self.combine(torch.cat((context, states), -1))))


FAMILIES: dict[str, tuple[LanguageModel, Callable[[], nn.Module]]] = {
    "rnn": (RNNConfig(vocab_size=V, layers=LAYERS, width=D).build(), lambda: PlainRecurrent(nn.RNN)),
    "gru": (GRUConfig(vocab_size=V, layers=LAYERS, width=D).build(), lambda: PlainRecurrent(nn.GRU)),
    "lstm": (LSTMConfig(vocab_size=V, layers=LAYERS, width=D).build(), lambda: PlainRecurrent(nn.LSTM)),
    "transformer": (
        TransformerConfig(vocab_size=V, context=T, layers=LAYERS, width=D, heads=HEADS, activation="gelu").build(),
        PlainDecoder,
    ),
    "seq2seq_recurrent": (
        RecurrentSeq2SeqConfig(vocab_size=V, layers=LAYERS, width=D, cell="gru", attention="dot").build(),
        PlainRecurrentTranslator,
    ),
    "seq2seq_transformer": (
        TransformerSeq2SeqConfig(
            vocab_size=V, context=T, encoder_layers=LAYERS, decoder_layers=LAYERS, width=D, heads=HEADS
        ).build(),
        PlainTranslator,
    ),
}


def step_of(module: nn.Module, logits_of: Callable[[Tensor, Tensor], Tensor], loss_of) -> Callable[[], None]:
    optimizer = AdamW().build(module)
    generator = torch.Generator().manual_seed(0)
    tokens, targets, source = (torch.randint(0, V, (B, T), generator=generator) for _ in range(3))
    native = torch.cpu._is_avx512_bf16_supported()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            logits = logits_of(tokens, source)
        loss_of(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_no_slower_than_plain_torch(family, capsys):
    keep_freed_memory()
    torch.set_num_threads(torch.get_num_threads() if torch.get_num_threads() > 1 else 2)
    ours, make_plain = FAMILIES[family]

    def logits_of(tokens_BT: Tensor, source_BS: Tensor) -> Tensor:
        return ours(tokens_BT, ours.encode(source_BS) if isinstance(ours, EncoderDecoder) else None)[0]

    plain = make_plain()
    sides = {
        "ours": step_of(ours.train(), logits_of, lambda y, t: token_nll(y, t).sum() / t.numel()),
        "torch.nn": step_of(plain.train(), plain, lambda y, t: F.cross_entropy(y.flatten(0, 1).float(), t.flatten())),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round in range(ROUNDS + 3):
        for name, step in sides.items():
            seconds = seconds_of(step)
            if round >= 3:
                times[name].append(seconds)
    ratio = statistics.median(times["torch.nn"]) / statistics.median(times["ours"])
    rate = B * T / statistics.median(times["ours"])
    with capsys.disabled():
        print(f"\n{family}: {rate:,.0f} tokens/s, {ratio:.2f} x torch.nn")
    assert ratio > 0.95


def test_cached_generation_is_linear_in_length(capsys):
    torch.set_num_threads(2)
    model = TransformerConfig(vocab_size=V, context=1100, layers=4, width=D, heads=HEADS).build().eval()
    rates = {}
    for length in (64, 1024):
        generate(model, [[1]], 16)
        repeats = [seconds_of(lambda length=length: generate(model, [[1]], length)) for _ in range(3)]  # pyright: ignore
        rates[length] = length / statistics.median(repeats)
    with capsys.disabled():
        print("\n" + ", ".join(f"{length} tokens: {rate:,.0f} tokens/s" for length, rate in rates.items()))
    assert rates[1024] > 0.6 * rates[64]
