"""Beam search: exact where it may follow everything, greedy where it follows one, and the same alone and in a batch."""

import itertools
import math

import pytest
import torch

from pipeline.generation.beam import Beam, beam_search
from pipeline.generation.sampling import generate
from pipeline.generation.stopping import StopStrings
from pipeline.models.base import LanguageModel
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig

CONTEXT = 12
FAMILIES = ("transformer", "lstm", "seq2seq_recurrent", "seq2seq_transformer")


def build(family: str, vocab_size: int) -> LanguageModel:
    torch.manual_seed(8)
    shape = {"vocab_size": vocab_size, "width": 16}
    model = {
        "transformer": TransformerConfig(context=CONTEXT, layers=1, heads=2, **shape),
        "lstm": LSTMConfig(layers=1, **shape),
        "seq2seq_recurrent": RecurrentSeq2SeqConfig(cell="lstm", layers=1, attention="dot", **shape),
        "seq2seq_transformer": TransformerSeq2SeqConfig(
            context=CONTEXT, encoder_layers=1, decoder_layers=1, heads=2, **shape
        ),
    }[family].build()
    for parameter in model.parameters():
        parameter.data *= 4  # far from uniform, so that a wrong state changes the answer
    return model.eval()


@pytest.fixture(params=FAMILIES)
def model(request) -> LanguageModel:
    return build(request.param, vocab_size=30)


@pytest.fixture(params=FAMILIES)
def small(request) -> LanguageModel:
    return build(request.param, vocab_size=5)


def requests(model: LanguageModel, *sources: list[int], prompts=((0,), (0, 3, 2), (0, 1))) -> dict:
    """Prompts of different lengths, and sources for a model that reads them."""
    sources = sources or ([3, 1, 0], [4, 2, 2, 1, 0], [2, 0])
    chosen = [list(prompt) for prompt in prompts][: len(sources)]
    return {"prompts": chosen, "sources": list(sources)} if model.reads_source else {"prompts": chosen}


def one(request: dict, index: int) -> dict:
    return {name: [rows[index]] for name, rows in request.items()}


@torch.inference_mode()
def log_probability(model: LanguageModel, prompt: list[int], new: list[int], source: list[int] | None = None) -> float:
    """The sum of the log-probabilities of new tokens, by one forward without a cache."""
    state = None if source is None else model.encode(torch.tensor([source]))  # pyright: ignore
    logits_BTV, _ = model(torch.tensor([prompt + new[:-1]]), state)
    logits_TV = logits_BTV[0, len(prompt) - 1 :].double()
    return sum(row[token].item() - row.logsumexp(0).item() for row, token in zip(logits_TV, new, strict=True))


def everything(vocab_size: int, steps: int, stop: int) -> list[list[int]]:
    """All texts of at most `steps` tokens that end with the stop token or at the limit."""
    others = [token for token in range(vocab_size) if token != stop]
    ended = [[*head, stop] for n in range(steps) for head in itertools.product(others, repeat=n)]
    return ended + [list(text) for text in itertools.product(others, repeat=steps)]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_follows_everything_finds_the_best_of_all_texts(small, alpha):
    request = requests(small)
    texts = everything(5, steps=4, stop=0)
    assert len(texts) == 1 + 4 + 16 + 64 + 256
    found = beam_search(
        small, **request, max_new_tokens=4, beam=Beam(width=500, length_penalty=alpha), best=5, stop=frozenset([0])
    )
    for index, hypotheses in enumerate(found):
        alone = {name: rows[index] for name, rows in request.items()}
        prompt, source = alone["prompts"], alone.get("sources")
        probabilities = [log_probability(small, prompt, text, source) for text in texts]
        assert sum(map(math.exp, probabilities)) == pytest.approx(1)
        # GNMT's formula, written out.
        scores = [p / ((5 + len(text)) ** alpha / 6**alpha) for p, text in zip(probabilities, texts, strict=True)]
        ranking = sorted(zip(scores, texts, probabilities, strict=True), reverse=True)[:5]
        assert [hypothesis.tokens for hypothesis in hypotheses] == [text for _, text, _ in ranking]
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx([s for s, _, _ in ranking], abs=1e-4)
        assert [h.log_probability for h in hypotheses] == pytest.approx([p for _, _, p in ranking], abs=1e-4)


def test_a_beam_of_one_is_greedy(model):
    request = requests(model)
    free = generate(model, max_new_tokens=9, **request)
    stop = frozenset([free[0][4]])
    expected = generate(model, max_new_tokens=9, stop=stop, **request)
    found = beam_search(model, max_new_tokens=9, beam=Beam(width=1), stop=stop, **request)
    assert [best.tokens for [best] in found] == expected


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_prompts_in_one_batch_are_continued_as_alone(model, alpha):
    request, beam = requests(model), Beam(width=3, length_penalty=alpha)
    options = {"max_new_tokens": 7, "beam": beam, "best": 3, "stop": frozenset([4, 11])}
    together = beam_search(model, **request, **options)
    for index, hypotheses in enumerate(together):
        [alone] = beam_search(model, **one(request, index), **options)
        assert [hypothesis.tokens for hypothesis in hypotheses] == [hypothesis.tokens for hypothesis in alone]
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in alone], abs=1e-4)


def test_scores_are_those_of_a_forward_without_a_cache(model):
    request = requests(model)
    found = beam_search(model, **request, max_new_tokens=8, beam=Beam(width=4), best=4, stop=frozenset([4]))
    for prompt, source, hypotheses in zip(request["prompts"], request.get("sources", [None] * 3), found, strict=True):
        for hypothesis in hypotheses:
            expected = log_probability(model, prompt, hypothesis.tokens, source)
            assert hypothesis.log_probability == pytest.approx(expected, abs=1e-4)


def test_a_wider_beam_finds_a_text_that_greedy_decoding_misses():
    """Two steps by hand: the likelier first token leads to unlikely ones."""
    first, after = torch.tensor([0.0, 0.6, 0.4]), {1: torch.tensor([0.4, 0.3, 0.3]), 2: torch.tensor([1.0, 0.0, 0.0])}
    model = Table(lambda tokens: first if len(tokens) == 1 else after.get(tokens[1], first))
    options = {"max_new_tokens": 5, "stop": frozenset([0])}
    [[greedy]] = beam_search(model, [[0]], beam=Beam(width=1, length_penalty=0.0), **options)
    [[best]] = beam_search(model, [[0]], beam=Beam(width=2, length_penalty=0.0), **options)
    assert (greedy.tokens, round(math.exp(greedy.log_probability), 6)) == ([1, 0], 0.24)
    assert (best.tokens, round(math.exp(best.log_probability), 6)) == ([2, 0], 0.4)


def test_the_length_penalty_favours_longer_texts():
    """Either an end of probability 0.30, or 0.70 and then four sure tokens of 0.8 each: 0.2867 in all."""
    model = Table(lambda tokens: torch.tensor([0.30, 0.70] if len(tokens) == 1 else [0.2, 0.8]))
    options = {"max_new_tokens": 5, "stop": frozenset([0])}
    lengths = {
        alpha: len(beam_search(model, [[1]], beam=Beam(width=6, length_penalty=alpha), **options)[0][0].tokens)
        for alpha in (0.0, 0.6)
    }
    assert lengths == {0.0: 1, 0.6: 5}


def test_the_search_ends_when_no_open_text_can_win():
    model = Table(lambda tokens: torch.tensor([0.98, 0.01, 0.01]))
    [[best]] = beam_search(model, [[0]], 50, Beam(width=3), stop=frozenset([0]))
    assert best.tokens == [0]
    # An open text of two tokens has at most probability 0.01: below log(0.98) even when divided for 50 tokens.
    assert model.calls == 1


def test_a_stop_string_ends_a_text(model):
    request = requests(model)

    def spelled(tokens) -> str:
        return "".join(chr(65 + token) for token in tokens)

    [free, *_] = beam_search(model, max_new_tokens=8, **request)
    stops = StopStrings([spelled(free[0].tokens[2:4])], spelled)
    found = beam_search(model, max_new_tokens=8, stop_when=stops.reached, best=4, **request)
    for hypothesis in itertools.chain(*found):
        text = spelled(hypothesis.tokens)
        assert not stops.holds(text[:-1])
        assert stops.holds(text) or len(text) == 8


def test_a_text_longer_than_the_context_goes_on():
    model = build("transformer", vocab_size=30)
    prompts = [[3, 4, 5], [6]]
    found = beam_search(model, prompts, 2 * CONTEXT, Beam(width=1))
    assert [best.tokens for [best] in found] == generate(model, prompts, 2 * CONTEXT)
    [[wide]] = beam_search(model, prompts[:1], 2 * CONTEXT, Beam(width=4))
    assert len(wide.tokens) == 2 * CONTEXT


@pytest.mark.parametrize(("steps", "stop"), [(6, 7), (9, 3)])
def test_without_a_length_penalty_it_finds_what_transformers_finds(steps, stop):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=12, **shape)).eval()
    for parameter in reference.parameters():
        parameter.data *= 4
    model = Table(lambda tokens: reference(torch.tensor([tokens])).logits[0, -1].softmax(-1), vocab_size=12)
    for prompt in ([1], [5, 2, 9], [4, 4], [8, 0, 3, 6]):
        theirs = reference.generate(
            torch.tensor([prompt]), num_beams=4, num_return_sequences=4, max_new_tokens=steps, length_penalty=0.0,
            do_sample=False, eos_token_id=stop, pad_token_id=stop, early_stopping=True, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        options = {"beam": Beam(width=4, length_penalty=0.0), "best": 4, "stop": frozenset([stop])}
        [ours] = beam_search(model, [prompt], steps, **options)
        texts = [row[len(prompt) :] for row in theirs.sequences.tolist()]
        texts = [text[: text.index(stop) + 1] if stop in text else text for text in texts]
        assert [hypothesis.tokens for hypothesis in ours] == texts
        assert [h.score for h in ours] == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-4)


@pytest.mark.parametrize("options", [{"width": 0}, {"length_penalty": -0.1}, {"length_penalty": float("nan")}])
def test_an_option_outside_its_range_is_refused(options):
    with pytest.raises(ValueError, match="give"):
        Beam(**options)


def test_more_hypotheses_than_beams_are_refused(model):
    with pytest.raises(ValueError, match="5 hypotheses are asked of a beam of 4"):
        beam_search(model, **requests(model), max_new_tokens=3, best=5)


class Table(LanguageModel):
    """Probabilities of the next token from a function of the tokens so far, which are the state."""

    def __init__(self, probabilities, vocab_size: int = 3):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(vocab_size))  # Decoding asks for a parameter's device.
        self.probabilities = probabilities
        self.calls = 0

    def init_state(self, batch, length, source_BS=None):
        return torch.zeros(batch, 0, dtype=torch.long)

    def forward(self, tokens_BT, state=None):
        self.calls += 1
        state = tokens_BT if state is None else torch.cat([state, tokens_BT], 1)
        return torch.stack([self.probabilities(row).log() for row in state.tolist()])[:, None], state

    def select(self, state, rows_B):
        return state[rows_B]

    def flops_per_token(self, context):
        return 0
