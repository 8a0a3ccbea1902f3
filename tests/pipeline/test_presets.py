"""Every decoder-only preset has the published number of parameters, counted on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml

from pipeline.models.transformer import Transformer, TransformerConfig

MODELS = Path(__file__).parents[2] / "configs/model"

# The models that were released, as counted by those who released them or by the tensors of their files.
EXACT = {
    "gpt1": 116_534_784,
    "gpt2_small": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_65b": 65_285_660_672,
    "tinyllama_1b": 1_100_048_384,
    # The files hold the tied head a second time.
    "falcon_7b": 7_217_189_760 - 65024 * 4544,
    "pythia_14m": 14_067_712,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
}

# Brown et al. 2020, table D.1, in millions.
GPT3 = {
    "gpt3_small": 125, "gpt3_medium": 356, "gpt3_large": 760, "gpt3_xl": 1320,
    "gpt3_2.7b": 2650, "gpt3_6.7b": 6660, "gpt3_13b": 12850, "gpt3_175b": 174600,
}  # fmt: skip


def build(name: str) -> Transformer:
    architecture = yaml.safe_load((MODELS / f"{name}.yaml").read_text())["model"]["architecture"]
    assert architecture["class_path"] == "TransformerConfig"
    with torch.device("meta"):
        return TransformerConfig(**architecture["init_args"]).build()


@pytest.mark.parametrize("name", EXACT)
def test_a_preset_has_exactly_the_published_parameters(name):
    assert build(name).parameter_counts()["total"] == EXACT[name]


@pytest.mark.parametrize("name", GPT3)
def test_a_gpt3_preset_has_the_papers_parameters_within_1_percent(name):
    assert build(name).parameter_counts()["total"] == pytest.approx(GPT3[name] * 1e6, rel=0.01)


@pytest.mark.parametrize("name", GPT3)
def test_gpt3_alternates_dense_and_banded_layers(name):
    bands = [attention.band for attention in build(name).attentions]
    assert bands == [None, 256] * (len(bands) // 2)


def test_no_decoder_only_preset_is_left_unchecked():
    decoder_only = {path.stem for path in MODELS.glob("*.yaml") if "class_path: TransformerConfig" in path.read_text()}
    classifiers = {path.stem for path in MODELS.glob("classifier*.yaml")}
    # gpt_14m is of our own making.
    assert decoder_only - classifiers - {"gpt_14m"} == {*EXACT, *GPT3}
