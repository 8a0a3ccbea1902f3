"""Import and export against `transformers`: the same logits, the same ids, and a sentence for what has no counterpart."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from data_prep.files import InputError
from pipeline.checkpoint import load_run
from pipeline.cli import main
from pipeline.generation.sampling import generate
from pipeline.interchange.architectures import ARCHITECTURES, architecture_for, config_of, resolved
from pipeline.interchange.comparison import PARAGRAPH
from pipeline.interchange.layouts import Heads, Interleaved, Separate, Transposed
from pipeline.interchange.weights import write_weights
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.transformer import TransformerConfig

PRESETS = Path(__file__).parents[2] / "configs" / "model"
STORIES = Path(__file__).parents[3] / "shared" / "data" / "models"

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
THEIRS = {
    "gpt2": ("GPT2Config", {**SMALL, "n_inner": 48}),
    "gpt2, untied, exact gelu": (
        "GPT2Config",
        {**SMALL, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "llama": ("LlamaConfig", {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}),
    "llama, tied, biases, wide heads": (
        "LlamaConfig",
        {
            **SMALL,
            "intermediate_size": 48,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 16,
        },
    ),
    "llama, another base": (
        "LlamaConfig",
        {**SMALL, "intermediate_size": 48, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "mistral": (
        "MistralConfig",
        {**SMALL, "intermediate_size": 48, "num_key_value_heads": 1, "sliding_window": 64},
    ),
    "falcon": ("FalconConfig", SMALL),
    "falcon, many keys, in sequence, biases": (
        "FalconConfig",
        {**SMALL, "multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 48},
    ),
    "pythia": ("GPTNeoXConfig", {**SMALL, "intermediate_size": 48}),
    "gpt-neox, tied, in sequence": (
        "GPTNeoXConfig",
        {**SMALL, "intermediate_size": 48, "tie_word_embeddings": True, "use_parallel_residual": False},
    ),
}

GPT2 = TransformerConfig(vocab_size=400, context=64, layers=2, width=32, heads=4)
LLAMA = replace(
    GPT2, kv_heads=2, hidden=48, norm="rmsnorm", positions="rotary", activation="swiglu", bias=False, tied=False
)
FALCON = replace(GPT2, kv_heads=1, positions="rotary", activation="gelu", bias=False, parallel=True, shared_norm=True)
PYTHIA = replace(GPT2, positions="rotary", rotary_fraction=0.25, activation="gelu", parallel=True, tied=False)
OURS = {
    "GPT2LMHeadModel": GPT2,
    "GPT2LMHeadModel, untied": replace(GPT2, tied=False, activation="gelu", norm_eps=1e-3),
    "LlamaForCausalLM": LLAMA,
    "LlamaForCausalLM, tied, biases, wide heads": replace(
        LLAMA, tied=True, bias=True, head_width=16, rotary_base=500.0
    ),
    "FalconForCausalLM": FALCON,
    "FalconForCausalLM, in sequence": replace(FALCON, parallel=False, shared_norm=False, bias=True, tied=False),
    "FalconForCausalLM, many keys": replace(FALCON, kv_heads=4, hidden=48),
    "GPTNeoXForCausalLM": PYTHIA,
    "GPTNeoXForCausalLM, in sequence": replace(PYTHIA, rotary_fraction=1.0, parallel=False, activation="gelu_tanh"),
}


def tokens_of(count: int = 64) -> torch.Tensor:
    return torch.randint(400, (1, count), generator=torch.Generator().manual_seed(1))


def logits_of_transformers(folder: Path, tokens_BT: torch.Tensor) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model.eval()(tokens_BT).logits


def logits_of_run(run: Path, tokens_BT: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return load_run(run).model(tokens_BT)[0]


def refused(arguments: list[str], capsys) -> str:
    """The sentence with which a command refuses its input."""
    capsys.readouterr()  # progress bars of transformers
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


def importing(folder: Path, *more: str) -> list[str]:
    return ["import", "--from", str(folder), "--run", str(folder.parent / "imported"), *more]


def exporting(run: Path, *more: str) -> list[str]:
    return ["export", "--run", str(run), "--to", str(run.parent / "exported"), *more]


@pytest.mark.parametrize(("config", "settings"), THEIRS.values(), ids=THEIRS)
def test_an_imported_model_has_the_logits_of_transformers(config, settings, make_folder, capsys):
    folder = make_folder(config, **settings)
    assert main(importing(folder)) == 0
    assert "max |Δlogit| = " in capsys.readouterr().out
    run, tokens_BT = folder.parent / "imported", tokens_of()
    torch.testing.assert_close(
        logits_of_run(run, tokens_BT), logits_of_transformers(folder, tokens_BT), atol=2e-5, rtol=1e-5
    )
    assert (run / "checkpoints" / "best.ckpt").samefile(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(("name", "config"), OURS.items(), ids=OURS)
def test_an_exported_run_has_its_logits_and_ids_in_transformers(name, config, make_run, capsys):
    transformers = pytest.importorskip("transformers")
    run = make_run(config)
    assert main(exporting(run)) == 0
    folder, tokens_BT = run.parent / "exported", tokens_of()
    assert f"{name.partition(',')[0]}, to be loaded" in capsys.readouterr().out
    torch.testing.assert_close(
        logits_of_transformers(folder, tokens_BT), logits_of_run(run, tokens_BT), atol=2e-5, rtol=1e-5
    )
    theirs, own = transformers.AutoTokenizer.from_pretrained(folder), load_run(run).tokenizer
    assert theirs.encode(PARAGRAPH) == own.encode(PARAGRAPH)
    assert theirs.decode(own.encode(PARAGRAPH)) == PARAGRAPH
    assert theirs.eos_token_id == theirs.bos_token_id == own.end_of_text


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_out_and_in_again_changes_no_bit_of_the_weights(config, make_run):
    run = make_run(config)
    assert main(exporting(run, "--no_check")) == 0
    assert main(importing(run.parent / "exported", "--no_check")) == 0
    before, after = load_run(run), load_run(run.parent / "imported")
    assert before.tokenizer.content == after.tokenizer.content
    for (name, weight), (same_name, same) in zip(
        before.model.state_dict().items(), after.model.state_dict().items(), strict=True
    ):
        assert name == same_name
        assert torch.equal(weight, same), name


def test_the_run_s_own_validation_text_is_compared_where_it_is_at_hand(make_run, tokens_folder, capsys):
    pytest.importorskip("transformers")
    run = make_run(replace(GPT2, vocab_size=512), data=tokens_folder)
    assert main(exporting(run)) == 0
    assert "on 64 tokens of the run's validation split" in capsys.readouterr().out


@pytest.mark.parametrize("layout", [Transposed(), Separate(), Interleaved()], ids=lambda layout: type(layout).__name__)
@pytest.mark.parametrize("shape", [(24, 5), (24,)], ids=["weight", "bias"])
def test_a_layout_and_its_inverse_are_exact(layout, shape):
    heads, ours = Heads(query=4, pairs=4, width=2), torch.randn(shape)
    assert torch.equal(layout.to_ours(layout.to_theirs(ours, heads), heads), ours)


def test_interleaved_rows_go_pair_by_pair():
    # Two key heads of width 1, each for two queries: rows q0 q1 q2 q3 | k0 k1 | v0 v1.
    [mixed] = Interleaved().to_theirs(torch.arange(8), Heads(query=4, pairs=2, width=1))
    assert mixed.tolist() == [0, 1, 4, 6, 2, 3, 5, 7]


def test_weights_in_several_files_are_read_and_written(make_folder):
    folder = make_folder("LlamaConfig", **SMALL, intermediate_size=48, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert main(importing(folder)) == 0
    run, exported = folder.parent / "imported", folder.parent / "exported"
    assert main(["export", "--run", str(run), "--to", str(exported), "--no_check"]) == 0
    (exported / "model.safetensors").unlink()
    model = load_run(run).model
    write_weights(exported, model, architecture_for(model.config), file_bytes=30_000)
    assert len(list(exported.glob("*.safetensors"))) > 1
    tokens_BT = tokens_of()
    assert torch.equal(logits_of_transformers(folder, tokens_BT), logits_of_transformers(exported, tokens_BT))


def test_early_files_of_gpt2_are_read_without_prefix_and_with_masks(make_folder):
    folder = make_folder("GPT2Config", **SMALL)
    path = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "lm_head.weight": tensors["wte.weight"].clone()}
    save_file(tensors, path, metadata={"format": "pt"})
    assert main(importing(folder)) == 0


def test_half_precision_weights_are_read_exactly(make_folder):
    folder = make_folder("LlamaConfig", **SMALL, intermediate_size=48)
    path = folder / "model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path, metadata={"format": "pt"})
    assert main(importing(folder)) == 0
    embedding = load_run(folder.parent / "imported").model.state_dict()["token_embedding.weight"]
    assert torch.equal(embedding, halves["model.embed_tokens.weight"].float())


def preset(name: str) -> TransformerConfig:
    content = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    return TransformerConfig(**content["model"]["architecture"]["init_args"])


# The config.json of the hub's openai-community/gpt2, TinyLlama/TinyLlama_v1.1, EleutherAI/pythia-70m and tiiuae/falcon-7b, as
# earlier versions of transformers wrote them, without what does not change a logit.
PUBLISHED = {
    "gpt2_small": {
        "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
    },
    "tinyllama_1b": {
        "model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632,
        "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "pythia_70m": {
        "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 8, "num_hidden_layers": 6,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True,
        "vocab_size": 50304,
    },
    "falcon_7b": {
        "model_type": "falcon", "alibi": False, "bias": False, "hidden_size": 4544, "layer_norm_epsilon": 1e-05,
        "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32,
        "parallel_attn": True, "vocab_size": 65024,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_as_our_preset(name):
    def of_logits(config: TransformerConfig) -> dict:
        """The settings that a trained model's logits depend on."""
        ours = resolved(config)
        return {k: v for k, v in ours.items() if k not in ("dropout", "scale_residual_init") and not k.endswith("_std")}

    assert of_logits(config_of(PUBLISHED[name])) == of_logits(preset(name))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2_*", "GPT2LMHeadModel"),
        ("*llama_*", "LlamaForCausalLM"),
        ("pythia_*", "GPTNeoXForCausalLM"),
        ("falcon_*", "FalconForCausalLM"),
    ],
)
def test_presets_are_exported_as_their_namesakes(family, name):
    presets = [path.stem for path in PRESETS.glob(f"{family}.yaml")]
    assert presets
    assert {architecture_for(preset(stem)).name for stem in presets} == {name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"band": 8}, ["GPT2LMHeadModel", "band 8"]),
        ({"document_end": 0}, ["document_end 0"]),
        ({"norm_order": "post"}, ["norm_order 'post'"]),
        ({"norm": "rmsnorm"}, ["norm 'rmsnorm'", "LlamaForCausalLM"]),
        ({"bias": False}, ["bias False, not True"]),
        ({"kv_heads": 2}, ["kv_heads 2, not 4"]),
        ({"head_width": 16}, ["head_width 16"]),
    ],
    ids=str,
)
def test_what_no_architecture_has_is_refused_by_name(change, words, make_run, capsys):
    run = make_run(replace(GPT2, **change))
    sentence = refused(exporting(run, "--no_check"), capsys)
    assert all(word in sentence for word in words), sentence
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_model_of_another_family_is_refused_by_name(make_run, capsys):
    run = make_run(LSTMConfig(vocab_size=400, layers=1, width=8))
    assert "is of the family lstm" in refused(exporting(run, "--no_check"), capsys)
    assert [path.name for path in run.parent.iterdir()] == ["run"]


LLAMA_JSON = {
    "model_type": "llama", "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip
FALCON_JSON = {
    "model_type": "falcon", "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
}  # fmt: skip
GPT2_JSON = {"model_type": "gpt2", "vocab_size": 400, "n_embd": 32, "n_layer": 1, "n_head": 4}
NEOX_JSON = LLAMA_JSON | {"model_type": "gpt_neox"}
MISTRAL_JSON = LLAMA_JSON | {"model_type": "mistral", "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba': only 'gpt2', 'llama', 'mistral', 'gpt_neox' or 'falcon'"),
        ({}, "model_type is None"),
        (LLAMA_JSON | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        (LLAMA_JSON | {"rope_parameters": {"rope_type": "llama3"}}, "rope_type 'llama3'"),
        (LLAMA_JSON | {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (LLAMA_JSON | {"attention_bias": True}, "biases together or not at all"),
        (LLAMA_JSON | {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA_JSON | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({**LLAMA_JSON, "hidden_size": None}, "config.json has no hidden_size"),
        (LLAMA_JSON | {"hidden_size": "wide"}, "describes no model that can be built"),
        (LLAMA_JSON | {"rope_parameters": "default"}, "describes no model that can be built"),
        (LLAMA_JSON | {"rope_theta": "large"}, "describes no model that can be built"),
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        (LLAMA_JSON | {"num_key_value_heads": 3}, "4 heads cannot share 3 kv_heads"),
        (MISTRAL_JSON | {"sliding_window": 32}, "sliding_window 32 is shorter than max_position_embeddings 64"),
        (FALCON_JSON | {"alibi": True}, "alibi is True"),
        (FALCON_JSON | {"new_decoder_architecture": True}, "new_decoder_architecture is True"),
        (FALCON_JSON | {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads is 2 without multi_query"),
        (GPT2_JSON | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (GPT2_JSON | {"activation_function": "relu"}, "activation_function is 'relu'"),
        (NEOX_JSON | {"attention_bias": False}, "attention_bias is False"),
    ],
    ids=str,
)
def test_what_our_model_lacks_is_refused_by_name(theirs, words):
    with pytest.raises(InputError) as refusal:
        config_of(theirs)
    assert words in str(refusal.value)


def drop(tensors):
    del tensors["model.norm.weight"]


def reshape(tensors):
    tensors["model.norm.weight"] = torch.ones(33)


def add(tensors):
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)


def quantize(tensors):
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop, "has no tensor model.norm.weight"),
        (reshape, r"model.norm.weight of {} has shape [33], its config.json implies [32]"),
        (add, "model.layers.0.self_attn.q_norm.weight (1 such in all)"),
        (quantize, "model.norm.weight is of type torch.int8"),
    ],
)
def test_tensors_that_do_not_fit_are_one_sentence_and_leave_nothing(damage, words, make_folder, capsys):
    folder = make_folder("LlamaConfig", **SMALL, intermediate_size=48)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert words.format(folder) in refused(importing(folder, "--no_check"), capsys)
    assert [path.name for path in folder.parent.iterdir()] == ["theirs"]


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(folder):
    (folder / "model.safetensors").write_bytes(b"no tensors here")


def remove(folder):
    (folder / "model.safetensors").unlink()


def point_elsewhere(folder):
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def empty_index(folder):
    (folder / "model.safetensors.index.json").write_text("[]")


def break_config(folder):
    (folder / "config.json").write_text("{")


def remove_config(folder):
    (folder / "config.json").unlink()


def remove_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "is damaged or no safetensors file"),
        (overwrite, "is damaged or no safetensors file"),
        (remove, "has no model.safetensors"),
        (point_elsewhere, "lacks model-00002-of-00002.safetensors"),
        (empty_index, "has no weight_map"),
        (break_config, "is not valid JSON"),
        (remove_config, "has no config.json"),
        (remove_tokenizer, "There is no tokenizer at"),
    ],
)
def test_a_broken_folder_is_one_sentence_and_leaves_nothing(damage, words, make_folder, capsys):
    folder = make_folder("LlamaConfig", **SMALL, intermediate_size=48)
    damage(folder)
    assert words in refused(importing(folder, "--no_check"), capsys)
    assert [path.name for path in folder.parent.iterdir()] == ["theirs"]


def test_a_conversion_that_goes_wrong_is_noticed_and_leaves_nothing(make_folder, make_run, monkeypatch, capsys):
    monkeypatch.setattr(Separate, "to_ours", lambda self, theirs, heads: torch.cat(theirs[::-1]))
    folder = make_folder("LlamaConfig", **SMALL, intermediate_size=48)
    assert "above the tolerance of 0.0001" in refused(importing(folder), capsys)
    monkeypatch.setattr(Transposed, "to_theirs", lambda self, ours, heads: [ours.t().flip(-1)])
    run = make_run(GPT2)
    assert "above the tolerance of 0.0001" in refused(exporting(run), capsys)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run", "theirs"]


def test_what_exists_is_never_overwritten(make_folder, make_run, capsys):
    folder = make_folder("GPT2Config", **SMALL)
    (folder.parent / "imported").mkdir()
    assert "exists already" in refused(importing(folder, "--no_check"), capsys)
    run = make_run(GPT2)
    (folder.parent / "exported").mkdir()
    assert "exists already" in refused(exporting(run, "--no_check"), capsys)
    assert not list((folder.parent / "exported").iterdir())


def test_without_transformers_nothing_is_converted_unless_unchecked(make_run, monkeypatch, capsys):
    run = make_run(GPT2)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "--no_check" in refused(exporting(run), capsys)
    assert main(exporting(run, "--no_check")) == 0
    assert "NOT CHECKED" in capsys.readouterr().out
    folder = run.parent / "exported"
    assert "--no_check" in refused(importing(folder), capsys)
    assert main(importing(folder, "--no_check")) == 0
    assert "NOT CHECKED" in capsys.readouterr().out


def test_every_table_names_each_parameter_once():
    for config in OURS.values():
        architecture = architecture_for(config)
        with torch.device("meta"):
            parameters = [name for name, _ in config.build().named_parameters()]
        named = [tensor for parameter in parameters for tensor in architecture.entry(parameter)[0]]
        assert len(set(named)) == len(named)
    assert {architecture_for(config) for config in OURS.values()} == set(ARCHITECTURES)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared models are not on this machine")
def test_stories260k_has_the_logits_of_transformers_and_tells_a_story(tmp_path):
    folder, run = STORIES / "stories260K-hf", tmp_path / "run"
    assert main(["import", "--from", str(folder), "--run", str(run), "--tokenizer", str(STORIES / "tok512.bin")]) == 0
    loaded = load_run(run)
    prompt = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode("Once upon a time")]
    [tokens] = generate(loaded.model, [prompt], 120)
    story = loaded.tokenizer.decode(prompt[1:] + tokens)
    assert story.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    tokens_BT = torch.tensor([prompt + tokens])
    theirs = logits_of_transformers(folder, tokens_BT)
    torch.testing.assert_close(logits_of_run(run, tokens_BT), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_a_written_config_is_read_as_the_same_model(config):
    settings = resolved(config)
    assert resolved(config_of(architecture_for(config).write(settings))) == settings
