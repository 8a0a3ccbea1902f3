"""The adapter gives an encoder-decoder its context as the source: checked by hand, and against the harness's own HFLM."""

import pytest
import torch
from lm_eval.api.instance import Instance

from data_prep.files import InputError
from pipeline.evaluation.harness import PipelineLM
from pipeline.generation.beam import Beam, beam_search
from pipeline.generation.sampling import Sampling
from pipeline.models.base import NO_TOKEN, EncoderDecoder
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig

CONTEXT = 48
CASES = [
    ("Return the number of", " items in the list"),
    ("Return the number of ", "items"),
    ("Return the number of", " lines"),
    ("class", "es are objects"),
    ("The value of an expression", "."),
    ("", "An expression statement"),
]


@pytest.fixture(params=["recurrent", "transformer"])
def translator(request, tokenizer) -> EncoderDecoder:
    shape = {"vocab_size": tokenizer.vocab_size, "width": 32}
    config = {
        "recurrent": RecurrentSeq2SeqConfig(cell="lstm", layers=1, bidirectional=True, attention="additive", **shape),
        "transformer": TransformerSeq2SeqConfig(
            context=CONTEXT, encoder_layers=1, decoder_layers=1, heads=2, positions="learned", **shape
        ),
    }[request.param]
    torch.manual_seed(0)
    model = config.build().eval()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, doc={}, arguments=a, idx=0, metadata=("test", i, 1)) for i, a in enumerate(arguments)]


@torch.inference_mode()
def by_hand(model, source: list[int], target: list[int]) -> tuple[float, bool]:
    """Sum of log-probabilities, without a batch; the decoder begins with the end-of-text token, which ends the source too."""
    logits_BTV, _ = model(torch.tensor([[source[-1], *target[:-1]]]), model.encode(torch.tensor([source])))
    logits_TV = logits_BTV[0].double()
    total = sum(row[token].item() - row.logsumexp(0).item() for row, token in zip(logits_TV, target, strict=True))
    return total, logits_TV.argmax(-1).tolist() == target


def test_log_likelihoods_equal_a_hand_computation(translator, tokenizer):
    end = tokenizer.end_of_text
    scored = PipelineLM(translator, tokenizer).loglikelihood(requests("loglikelihood", *CASES))
    for (context, continuation), (log_likelihood, greedy) in zip(CASES, scored, strict=True):
        # A blank at the end of the context belongs to the continuation, as everywhere in the harness.
        blank = context[len(context.rstrip()) :]
        source, target = tokenizer.encode(context.rstrip()), tokenizer.encode(blank + continuation)
        expected = by_hand(translator, [*source, end], target)
        assert log_likelihood == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


def test_batching_and_shared_contexts_change_no_score(translator, tokenizer):
    choices = [" of items", " of", ".", " that was given first"]
    asked = [(question, choice) for question in ("Return the number", "The value of that", "If") for choice in choices][
        :-2
    ]
    together = PipelineLM(translator, tokenizer).loglikelihood(requests("loglikelihood", *asked))
    alone = [PipelineLM(translator, tokenizer).loglikelihood(requests("loglikelihood", pair))[0] for pair in asked]
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]


def test_a_context_is_encoded_once_for_all_its_choices(translator, tokenizer, monkeypatch):
    encoded, encode = [], translator.encode
    monkeypatch.setattr(translator, "encode", lambda source: encoded.append(source.tolist()) or encode(source))
    choices = [(context, choice) for context in ("If", "An object that") for choice in (" a", " an object", " b c")]
    PipelineLM(translator, tokenizer).loglikelihood(requests("loglikelihood", *choices))
    end = tokenizer.end_of_text
    short, long = ([*tokenizer.encode(text), end] for text in ("If", "An object that"))
    assert encoded == [[long, short + [NO_TOKEN] * (len(long) - len(short))]]


@pytest.mark.parametrize("translator", ["transformer"], indirect=True)  # a recurrent model has no longest input
def test_a_request_longer_than_the_context_loses_its_beginning_and_is_counted(tokenizer, translator):
    lm = PipelineLM(translator, tokenizer)
    long = "Return the number of items. " * 20
    [(score, _), _] = lm.loglikelihood(requests("loglikelihood", (long, " The end"), ("short", " one")))
    source = [*tokenizer.encode(long.rstrip())[-(CONTEXT - 1) :], tokenizer.end_of_text]
    assert score == pytest.approx(by_hand(translator, source, tokenizer.encode("  The end"))[0], abs=1e-4)
    lm.generate_until(requests("generate_until", (long, {"max_gen_toks": 1000})))
    assert lm.truncated == 2


def test_answers_equal_repeated_full_forwards(translator, tokenizer):
    prompts, end = ["Return the number", "", "If", "A longer prompt than the others, of"], tokenizer.end_of_text
    written = PipelineLM(translator, tokenizer).generate_until(
        requests("generate_until", *[(prompt, {"until": [], "max_gen_toks": 6}) for prompt in prompts])
    )
    for prompt, text in zip(prompts, written, strict=True):
        state, new = translator.encode(torch.tensor([[*tokenizer.encode(prompt), end]])), []
        while len(new) < 6 and end not in new:
            new.append(int(translator(torch.tensor([[end, *new]]), state)[0][0, -1].argmax()))
        assert text == tokenizer.decode(token for token in new if token != end)


def test_answers_end_before_a_stop_string(translator, tokenizer):
    settings = {"until": [], "max_gen_toks": 8}
    [whole] = PipelineLM(translator, tokenizer).generate_until(requests("generate_until", ("Return", settings)))
    asked = requests("generate_until", ("Return", {**settings, "until": whole[3:5]}))
    assert PipelineLM(translator, tokenizer).generate_until(asked) == [whole[: whole.index(whole[3:5])]]


def test_a_task_may_ask_for_a_beam_search(translator, tokenizer):
    settings = {"until": [], "max_gen_toks": 6, "num_beams": 3, "length_penalty": 0.2}
    [text] = PipelineLM(translator, tokenizer).generate_until(requests("generate_until", ("Return the", settings)))
    end = tokenizer.end_of_text
    source, beam = [*tokenizer.encode("Return the"), end], Beam(width=3, length_penalty=0.2)
    [[best]] = beam_search(translator, [[end]], 6, beam, sources=[source], stop=frozenset([end]))
    assert text == tokenizer.decode(token for token in best.tokens if token != end)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Sampling()),
        ({"temperature": 0.7}, Sampling(temperature=0.7)),
        ({"do_sample": False, "temperature": 0.7}, Sampling()),
        ({"do_sample": True, "top_k": 0, "top_p": 0.9, "min_p": 0.1}, Sampling(temperature=1.0, top_p=0.9, min_p=0.1)),
        ({"repetition_penalty": 1.3}, Sampling(repetition_penalty=1.3)),
        ({"num_beams": 4}, Beam(width=4, length_penalty=0.6)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_of_a_task_mean_what_they_mean_in_transformers(settings, expected):
    from pipeline.evaluation.harness import decoding_of

    assert decoding_of(settings) == expected


def test_a_setting_outside_its_range_is_one_sentence(translator, tokenizer):
    asked = requests("generate_until", ("Return", {"max_gen_toks": 2, "temperature": 1.0, "top_p": 3}))
    with pytest.raises(InputError, match="generation_kwargs of a task cannot be used: top_p 3 is not in"):
        PipelineLM(translator, tokenizer).generate_until(asked)


def test_running_text_is_a_target_whose_source_is_what_stands_before_it(translator, tokenizer):
    text, end = "Return the number of items.", tokenizer.end_of_text
    [score] = PipelineLM(translator, tokenizer).loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    assert score == pytest.approx(by_hand(translator, [end], [*tokenizer.encode(text), end])[0], abs=1e-4)


def test_scores_and_answers_equal_the_harness_hflm_on_the_same_weights(tokenizer):
    transformers = pytest.importorskip("transformers", reason="HFLM needs transformers, which is not installed")
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="HFLM needs accelerate")
    import tokenizers

    torch.manual_seed(0)
    end = tokenizer.end_of_text
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=tokenizer.vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, eos_token_id=end,
            pad_token_id=end, decoder_start_token_id=end,
        )
    ).eval()  # fmt: skip
    for parameter in t5.parameters():
        parameter.data *= 2
    ours = PipelineLM(AsEncoderDecoder(t5), tokenizer)
    ends_sources = tokenizers.Tokenizer.from_str(tokenizer.content)
    ends_sources.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    reference = huggingface.HFLM(
        pretrained=t5, backend="seq2seq", max_length=CONTEXT, batch_size=4, device="cpu",
        tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=ends_sources, eos_token="<|endoftext|>"),
    )  # fmt: skip
    asked = requests("loglikelihood", *CASES)
    for (a, a_greedy), (b, b_greedy) in zip(ours.loglikelihood(asked), reference.loglikelihood(asked), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert a_greedy == b_greedy
    ours.max_length = CONTEXT
    texts = requests(
        "loglikelihood_rolling", ("Return the number",), (" ".join(text for pair in CASES for text in pair) * 3,), ("",)
    )
    assert len(tokenizer.encode(texts[1].args[0])) > 2 * CONTEXT
    assert ours.loglikelihood_rolling(texts) == pytest.approx(reference.loglikelihood_rolling(texts), abs=1e-3)
    # HFLM adds the length of the source to an encoder-decoder's max_gen_toks unless max_length (with the start token) is given.
    settings = {"until": ["\n", "th"], "max_gen_toks": 8, "max_length": 9}
    prompts = requests("generate_until", *[(text, settings) for text, _ in CASES[:5]])
    answers = ours.generate_until(prompts)
    assert answers == reference.generate_until(prompts)
    assert len({*answers}) > 2


class AsEncoderDecoder(EncoderDecoder):
    """A model of transformers behind our interface; the state is the source and the tokens so far."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def encode(self, source_BS):
        return source_BS, source_BS[:, :0]

    def init_state(self, batch, length, source_BS=None):
        assert source_BS is not None
        return self.encode(source_BS)

    def forward(self, tokens_BT, state=None):
        assert state is not None
        source_BS, before_BT = state
        seen_BT = torch.cat([before_BT, tokens_BT], 1)
        logits_BTV = self.model(
            input_ids=source_BS.clamp(min=0), attention_mask=(source_BS != NO_TOKEN).long(), decoder_input_ids=seen_BT
        ).logits
        return logits_BTV[:, before_BT.shape[1] :], (source_BS, seen_BT)

    def select(self, state, rows_B):
        return tuple(part[rows_B] for part in state)

    def flops_per_token(self, context):
        return 0
