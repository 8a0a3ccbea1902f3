"""The architectures of `transformers` that our decoder-only transformer can be: each a table, read in both directions.

An architecture says under which keys config.json holds the fields of `TransformerConfig`, which values of ours it can express,
and under which names its files hold our parameters. Whatever lies outside of the tables is refused by name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data_prep.files import InputError
from pipeline.interchange.layouts import Heads, Interleaved, Layout, Same, Separate, Transposed
from pipeline.models.transformer import TransformerConfig

Settings = dict[str, Any]

REQUIRED = object()
"""Stands for the default of a key that config.json must have."""

ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "swiglu": ("silu", "swish"),
}
"""Ours, and what `transformers` calls it; the first name is written."""

NOWHERE = {"norm_order": ("pre",), "band": (None,), "document_end": (None,)}
"""Fields that no architecture here has, with the values that mean their absence."""


@dataclass(frozen=True)
class Row:
    """A module of ours, the modules that hold its parameters there, and how. `{n}` stands for the block's number."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout


def row(ours: str, *theirs: str, layout: Layout = Same()) -> Row:  # noqa: B008  it has no state
    return Row(ours, theirs, layout)


@dataclass(frozen=True)
class Rotary:
    """Where config.json holds the rotary embedding's base and the share of a head that it turns.

    `transformers` 5 keeps both in `rope_parameters`, earlier versions at the top level under these names.
    """

    base: str = "rope_theta"
    fraction: str | None = None
    default_fraction: float = 1.0


@dataclass(frozen=True, eq=False)
class Architecture:
    """One class of `transformers`: its config.json, its tensors, and which of our models it can hold."""

    name: str
    """Class in `transformers`."""
    model_type: str
    prefix: str
    """What the names of all tensors but the head's begin with; some files leave it out."""
    keys: Mapping[str, tuple[str, Any]]
    """By field of TransformerConfig: the key of config.json and its default there."""
    constants: Mapping[str, Any]
    """Keys of config.json that switch on what we lack, with the one value that can be read. They are written, too."""
    expresses: Mapping[str, tuple]
    """By field of TransformerConfig: the values that this architecture has."""
    activation: str
    """Key of config.json."""
    rotary: Rotary | None
    rows: tuple[Row, ...]
    dropouts: tuple[str, ...] = ()
    """Further keys of config.json with the dropout probability of `keys`."""
    shares_heads: bool = False
    """Whether several query heads can share a key head."""
    free_head_width: bool = False
    """Whether a head's width can differ from width / heads."""
    other_types: tuple[str, ...] = ()
    """Model types with the same tensors and computation."""

    # -- config.json to ours

    def read(self, theirs: Mapping[str, Any]) -> Settings:
        """The arguments of TransformerConfig.

        Raises:
            InputError: a key is missing, or has a value that our model cannot express.
        """
        ours: Settings = {name: self.value(theirs, key, default) for name, (key, default) in self.keys.items()}
        for key, value in self.constants.items():
            if self.value(theirs, key, value) != value:
                raise InputError(f"{key} is {theirs[key]!r}: a {self.name} can only be imported with {value!r}")
        known = {name: mine for mine in self.expresses["activation"] for name in ACTIVATIONS[mine]}
        activation = self.value(theirs, self.activation, next(iter(known)))
        if activation not in known:
            raise InputError(f"{self.activation} is {activation!r}: a {self.name} can be imported with {names(known)}")
        fixed = {name: values[0] for name, values in self.expresses.items() if len(values) == 1}
        return fixed | ours | {"activation": known[activation]} | self.read_rotary(theirs)

    def value(self, theirs: Mapping[str, Any], key: str, default: Any) -> Any:
        """A key's value; null means the default, as in `transformers`."""
        found = theirs.get(key)
        if found is None and default is REQUIRED:
            raise InputError(f"config.json has no {key}, which a {self.name} needs: restore the file")
        return default if found is None else found

    def read_rotary(self, theirs: Mapping[str, Any]) -> Settings:
        if self.rotary is None:
            return {}
        rope = (theirs.get("rope_scaling") or {}) | (theirs.get("rope_parameters") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise InputError(
                f"Its rotary positions are scaled (rope_type {kind!r}): only unscaled ones can be imported"
            )
        fraction = rope.get("partial_rotary_factor")
        if fraction is None:
            key = self.rotary.fraction or "partial_rotary_factor"
            fraction = self.value(theirs, key, self.rotary.default_fraction)
        if fraction != 1 and self.rotary.fraction is None:
            raise InputError(f"partial_rotary_factor is {fraction}: a {self.name} turns whole heads")
        base = rope.get("rope_theta", self.value(theirs, self.rotary.base, 10000.0))
        return {"rotary_base": float(base), "rotary_fraction": float(fraction)}

    # -- ours to config.json

    def objections(self, ours: Settings) -> list[str]:
        """Why this architecture cannot hold a model with these `resolved` settings, a phrase for each field; empty: it can."""
        found = [
            f"{name} {ours[name]!r}, not {names(values)}"
            for name, values in {**NOWHERE, **self.expresses}.items()
            if ours[name] not in values
        ]
        if not self.shares_heads and ours["kv_heads"] != ours["heads"]:
            found.append(f"kv_heads {ours['kv_heads']}, not {ours['heads']} as heads")
        if ours["width"] % ours["heads"]:
            found.append(f"width {ours['width']}, not a multiple of heads {ours['heads']}")
        elif not self.free_head_width and ours["head_width"] * ours["heads"] != ours["width"]:
            found.append(f"head_width {ours['head_width']}, not width / heads")
        if self.rotary and self.rotary.fraction is None and ours["rotary_fraction"] != 1:
            found.append(f"rotary_fraction {ours['rotary_fraction']}, not 1")
        return found

    def write(self, ours: Settings) -> Settings:
        """config.json for `resolved` settings that meet no objection."""
        theirs: Settings = {"architectures": [self.name], "model_type": self.model_type, "dtype": "float32"}
        theirs |= {key: ours[name] for name, (key, _) in self.keys.items()} | dict(self.constants)
        theirs |= dict.fromkeys(self.dropouts, ours["dropout"])
        theirs[self.activation] = ACTIVATIONS[ours["activation"]][0]
        if self.rotary:
            rope = {"rope_type": "default", "rope_theta": ours["rotary_base"]}
            theirs[self.rotary.base] = ours["rotary_base"]
            if self.rotary.fraction:
                rope["partial_rotary_factor"] = theirs[self.rotary.fraction] = ours["rotary_fraction"]
            theirs["rope_parameters"] = rope
        return theirs

    # -- tensors

    def entry(self, parameter: str) -> tuple[list[str], Layout]:
        """The names of the tensors that hold one of our parameters, and their layout."""
        module, _, kind = parameter.rpartition(".")
        number = re.search(r"(?<=blocks\.)\d+", module)
        pattern = re.sub(r"(?<=blocks\.)\d+", "{n}", module)
        found = next(row for row in self.rows if row.ours == pattern)
        return [f"{name.format(n=number and number[0])}.{kind}" for name in found.theirs], found.layout


class Llama(Architecture):
    def read(self, theirs: Mapping[str, Any]) -> Settings:
        biases = {key: self.value(theirs, key, False) for key in ("attention_bias", "mlp_bias")}
        if len(set(biases.values())) > 1:
            raise InputError(f"{biases} differ: our attention and MLP have biases together or not at all")
        ours = super().read(theirs)
        # Mistral's window changes nothing where it holds the whole context.
        window = theirs.get("sliding_window") if theirs["model_type"] == "mistral" else None
        if window is not None and window < ours["context"]:
            raise InputError(
                f"sliding_window {window} is shorter than max_position_embeddings {ours['context']}: only models whose "
                "attention reaches over the whole context can be imported"
            )
        return ours | {"bias": biases["attention_bias"]}

    def write(self, ours: Settings) -> Settings:
        return super().write(ours) | {"attention_bias": ours["bias"], "mlp_bias": ours["bias"]}


class Falcon(Architecture):
    def read(self, theirs: Mapping[str, Any]) -> Settings:
        ours = super().read(theirs)
        if self.value(theirs, "multi_query", True):
            return ours | {"kv_heads": 1, "shared_norm": ours["parallel"]}
        pairs = self.value(theirs, "num_kv_heads", ours["heads"])
        if pairs != ours["heads"]:
            raise InputError(f"num_kv_heads is {pairs} without multi_query: it must be num_attention_heads then")
        return ours | {"kv_heads": pairs, "shared_norm": ours["parallel"]}

    def objections(self, ours: Settings) -> list[str]:
        found = super().objections(ours)
        if ours["kv_heads"] not in (1, ours["heads"]):
            found.append(f"kv_heads {ours['kv_heads']}, not 1 or {ours['heads']}")
        if ours["shared_norm"] != ours["parallel"]:
            found.append(f"shared_norm {ours['shared_norm']}, not {ours['parallel']} as parallel")
        return found

    def write(self, ours: Settings) -> Settings:
        return super().write(ours) | {"multi_query": ours["kv_heads"] == 1, "num_kv_heads": ours["kv_heads"]}


GPT2 = Architecture(
    name="GPT2LMHeadModel",
    model_type="gpt2",
    prefix="transformer.",
    keys={
        "vocab_size": ("vocab_size", REQUIRED),
        "context": ("n_positions", 1024),
        "layers": ("n_layer", REQUIRED),
        "width": ("n_embd", REQUIRED),
        "heads": ("n_head", REQUIRED),
        "hidden": ("n_inner", None),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "dropout": ("resid_pdrop", 0.1),
        "init_std": ("initializer_range", 0.02),
        "tied": ("tie_word_embeddings", True),
    },
    constants={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    expresses={
        "norm": ("layernorm",),
        "positions": ("learned",),
        "activation": ("gelu_tanh", "gelu"),
        "bias": (True,),
        "parallel": (False,),
    },
    activation="activation_function",
    rotary=None,
    rows=(
        row("token_embedding", "transformer.wte"),
        row("position_embedding", "transformer.wpe"),
        row("blocks.{n}.attention_norm", "transformer.h.{n}.ln_1"),
        row("blocks.{n}.attention.query_key_value", "transformer.h.{n}.attn.c_attn", layout=Transposed()),
        row("blocks.{n}.attention.output", "transformer.h.{n}.attn.c_proj", layout=Transposed()),
        row("blocks.{n}.mlp_norm", "transformer.h.{n}.ln_2"),
        row("blocks.{n}.mlp.expand", "transformer.h.{n}.mlp.c_fc", layout=Transposed()),
        row("blocks.{n}.mlp.output", "transformer.h.{n}.mlp.c_proj", layout=Transposed()),
        row("norm", "transformer.ln_f"),
        row("head", "lm_head"),
    ),
    dropouts=("embd_pdrop", "attn_pdrop"),
)

LLAMA = Llama(
    name="LlamaForCausalLM",
    model_type="llama",
    prefix="model.",
    keys={
        "vocab_size": ("vocab_size", REQUIRED),
        "context": ("max_position_embeddings", 2048),
        "layers": ("num_hidden_layers", REQUIRED),
        "width": ("hidden_size", REQUIRED),
        "heads": ("num_attention_heads", REQUIRED),
        "kv_heads": ("num_key_value_heads", None),
        "head_width": ("head_dim", None),
        "hidden": ("intermediate_size", REQUIRED),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "dropout": ("attention_dropout", 0.0),
        "init_std": ("initializer_range", 0.02),
        "tied": ("tie_word_embeddings", False),
    },
    constants={},
    expresses={
        "norm": ("rmsnorm",),
        "positions": ("rotary",),
        "activation": ("swiglu",),
        "parallel": (False,),
    },
    activation="hidden_act",
    rotary=Rotary(),
    rows=(
        row("token_embedding", "model.embed_tokens"),
        row("blocks.{n}.attention_norm", "model.layers.{n}.input_layernorm"),
        row(
            "blocks.{n}.attention.query_key_value",
            *(f"model.layers.{{n}}.self_attn.{part}_proj" for part in "qkv"),
            layout=Separate(),
        ),
        row("blocks.{n}.attention.output", "model.layers.{n}.self_attn.o_proj"),
        row("blocks.{n}.mlp_norm", "model.layers.{n}.post_attention_layernorm"),
        row("blocks.{n}.mlp.gate", "model.layers.{n}.mlp.gate_proj"),
        row("blocks.{n}.mlp.expand", "model.layers.{n}.mlp.up_proj"),
        row("blocks.{n}.mlp.output", "model.layers.{n}.mlp.down_proj"),
        row("norm", "model.norm"),
        row("head", "lm_head"),
    ),
    shares_heads=True,
    free_head_width=True,
    other_types=("mistral",),
)

GPT_NEOX = Architecture(
    name="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    prefix="gpt_neox.",
    keys={
        "vocab_size": ("vocab_size", REQUIRED),
        "context": ("max_position_embeddings", 2048),
        "layers": ("num_hidden_layers", REQUIRED),
        "width": ("hidden_size", REQUIRED),
        "heads": ("num_attention_heads", REQUIRED),
        "hidden": ("intermediate_size", REQUIRED),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "dropout": ("hidden_dropout", 0.0),
        "init_std": ("initializer_range", 0.02),
        "tied": ("tie_word_embeddings", False),
        "parallel": ("use_parallel_residual", True),
    },
    constants={"attention_bias": True},
    expresses={
        "norm": ("layernorm",),
        "positions": ("rotary",),
        "activation": ("gelu", "gelu_tanh"),
        "bias": (True,),
        "shared_norm": (False,),
    },
    activation="hidden_act",
    rotary=Rotary(base="rotary_emb_base", fraction="rotary_pct", default_fraction=0.25),
    rows=(
        row("token_embedding", "gpt_neox.embed_in"),
        row("blocks.{n}.attention_norm", "gpt_neox.layers.{n}.input_layernorm"),
        row(
            "blocks.{n}.attention.query_key_value",
            "gpt_neox.layers.{n}.attention.query_key_value",
            layout=Interleaved(),
        ),
        row("blocks.{n}.attention.output", "gpt_neox.layers.{n}.attention.dense"),
        row("blocks.{n}.mlp_norm", "gpt_neox.layers.{n}.post_attention_layernorm"),
        row("blocks.{n}.mlp.expand", "gpt_neox.layers.{n}.mlp.dense_h_to_4h"),
        row("blocks.{n}.mlp.output", "gpt_neox.layers.{n}.mlp.dense_4h_to_h"),
        row("norm", "gpt_neox.final_layer_norm"),
        row("head", "embed_out"),
    ),
    dropouts=("attention_dropout",),
)

FALCON = Falcon(
    name="FalconForCausalLM",
    model_type="falcon",
    prefix="transformer.",
    keys={
        "vocab_size": ("vocab_size", REQUIRED),
        "context": ("max_position_embeddings", 2048),
        "layers": ("num_hidden_layers", REQUIRED),
        "width": ("hidden_size", REQUIRED),
        "heads": ("num_attention_heads", REQUIRED),
        "hidden": ("ffn_hidden_size", None),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "dropout": ("hidden_dropout", 0.0),
        "init_std": ("initializer_range", 0.02),
        "tied": ("tie_word_embeddings", True),
        "bias": ("bias", False),
        "parallel": ("parallel_attn", True),
    },
    constants={"alibi": False, "new_decoder_architecture": False},
    expresses={
        "norm": ("layernorm",),
        "positions": ("rotary",),
        "activation": ("gelu", "gelu_tanh"),
    },
    activation="activation",
    rotary=Rotary(),
    rows=(
        row("token_embedding", "transformer.word_embeddings"),
        row("blocks.{n}.attention_norm", "transformer.h.{n}.input_layernorm"),
        row(
            "blocks.{n}.attention.query_key_value",
            "transformer.h.{n}.self_attention.query_key_value",
            layout=Interleaved(),
        ),
        row("blocks.{n}.attention.output", "transformer.h.{n}.self_attention.dense"),
        row("blocks.{n}.mlp_norm", "transformer.h.{n}.post_attention_layernorm"),
        row("blocks.{n}.mlp.expand", "transformer.h.{n}.mlp.dense_h_to_4h"),
        row("blocks.{n}.mlp.output", "transformer.h.{n}.mlp.dense_4h_to_h"),
        row("norm", "transformer.ln_f"),
        row("head", "lm_head"),
    ),
    dropouts=("attention_dropout",),
    shares_heads=True,
)

ARCHITECTURES = (GPT2, LLAMA, GPT_NEOX, FALCON)


def architecture_of(theirs: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json names.

    Raises:
        InputError: there is none for it here.
    """
    known = {kind: each for each in ARCHITECTURES for kind in (each.model_type, *each.other_types)}
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise InputError(f"model_type is {kind!r}: only {names(known)} can be imported")
    if theirs.get("quantization_config"):
        raise InputError("Its weights are quantized (quantization_config): import the model's unquantized files")
    return known[kind]


def config_of(theirs: Mapping[str, Any]) -> TransformerConfig:
    """Our configuration of the model that a config.json describes.

    Raises:
        InputError: the description is incomplete, contradicts itself, or needs what our model lacks.
    """
    architecture = architecture_of(theirs)
    try:
        return TransformerConfig(**architecture.read(theirs))
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError) as error:  # words for numbers, or numbers that do not fit together
        raise InputError(f"config.json describes no model that can be built: {error}") from None


def architecture_for(config: TransformerConfig) -> Architecture:
    """The architecture that a model of this configuration can be exported to.

    Raises:
        InputError: none has all of it; the sentence names what stands against the nearest.
    """
    against = {each: each.objections(resolved(config)) for each in ARCHITECTURES}
    nearest = min(against, key=lambda each: len(against[each]))
    if not against[nearest]:
        return nearest
    raise InputError(
        f"No architecture of transformers expresses this model: the nearest, {nearest.name}, does not have "
        f"{'; '.join(against[nearest])} (known: {names(each.name for each in ARCHITECTURES)})"
    )


def resolved(config: TransformerConfig) -> Settings:
    """The configuration's fields, with the values that those left out take."""
    settings = asdict(config)
    derived = {"kv_heads": config.heads, "head_width": config.width // config.heads, "hidden": 4 * config.width}
    return settings | {name: value for name, value in derived.items() if settings[name] is None}


def heads_of(config: TransformerConfig) -> Heads:
    settings = resolved(config)
    return Heads(settings["heads"], settings["kv_heads"], settings["head_width"])


def names(values: Iterable[Any]) -> str:
    """Values as a sentence lists them: 'a', 'b' or 'c'."""
    words = [value if isinstance(value, str) and value[:1].isupper() else repr(value) for value in values]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
