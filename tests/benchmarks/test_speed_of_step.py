"""The speed of a training step: beside nanoGPT's, beside the matrix products that it is made of, and under Lightning beside a bare loop.

Every figure is a ratio of minima, measured by turns in one process; run it on an idle machine: `make bench`. The comparisons with
nanoGPT want a checkout of github.com/karpathy/nanoGPT, named by the environment variable NANOGPT.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback
from torch import nn

from data_prep.process_memory import keep_freed_memory
from pipeline.cli import main
from pipeline.layers.head import Targets
from pipeline.models.transformer import Transformer, TransformerConfig
from pipeline.optim import AdamW
from pipeline.training_cli import TrainingCLI

pytestmark = pytest.mark.benchmark

# The sizes of nanoGPT's configuration for shakespeare, at a vocabulary of subwords: 14M parameters.
V, LAYERS, D, HEADS, B, T = 8192, 6, 384, 6, 16, 256
ROUNDS, WARM_UP = 12, 3
BF16 = torch.bfloat16
NATIVE = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

Step = Callable[[], object]


@pytest.fixture(autouse=True)
def two_threads():
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nano_gpt(monkeypatch):
    """nanoGPT's module `model`."""
    folder = os.environ.get("NANOGPT", "")
    if not (Path(folder) / "model.py").is_file():
        pytest.skip("set NANOGPT to a checkout of github.com/karpathy/nanoGPT to compare with it")
    monkeypatch.syspath_prepend(folder)
    import model  # pyright: ignore[reportMissingImports]

    yield model
    del sys.modules["model"]


def fastest(sides: dict[str, Step], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of the fastest call of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round in range(rounds + WARM_UP):
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            if round >= WARM_UP:
                times[name].append(time.perf_counter() - start)
    return {name: min(of_side) for name, of_side in times.items()}


def our_model(vocab_size: int = V) -> Transformer:
    # nanoGPT's activation is the exact GELU.
    config = TransformerConfig(vocab_size=vocab_size, context=T, layers=LAYERS, width=D, heads=HEADS, activation="gelu")
    return config.build().train()


def our_step(dtype: torch.dtype, compiled: bool = False, vocab_size: int = V) -> Step:
    model = our_model(vocab_size)
    optimizer, parameters = AdamW(learning_rate=1e-3).build(model), list(model.parameters())
    tokens_BT = torch.randint(0, vocab_size, (B, T), generator=torch.Generator().manual_seed(0))
    if compiled:
        model.compile()

    def step() -> None:
        with torch.autocast("cpu", BF16, enabled=dtype == BF16):
            scores, _ = model(tokens_BT, None, Targets(tokens_BT))
        (scores.loss / tokens_BT.numel()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def nano_step(module, dtype: torch.dtype, compiled: bool = False) -> Step:
    """The step of nanoGPT's train.py."""
    sizes = {"vocab_size": V, "block_size": T, "n_layer": LAYERS, "n_embd": D, "n_head": HEADS}
    model = module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=True))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    tokens_BT = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(0))
    run = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast("cpu", BF16, enabled=dtype == BF16):
            _, loss = run(tokens_BT, tokens_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@pytest.mark.skipif(not NATIVE, reason="the processor does not multiply bf16 natively")
def test_a_compiled_step_in_bf16_is_a_tenth_faster_than_nanogpts(nano_gpt, capsys):
    seconds = fastest({"ours": our_step(BF16, True), "nanoGPT": nano_step(nano_gpt, BF16, True)})
    ratio = seconds["nanoGPT"] / seconds["ours"]
    with capsys.disabled():
        print(f"\n{ratio:.2f} x nanoGPT's tokens/s, both bf16 and compiled")
    assert ratio >= 1.1


@pytest.mark.skipif(not NATIVE, reason="the processor does not multiply bf16 natively")
def test_a_step_in_bf16_is_twice_as_fast_as_nanogpts_default_on_a_cpu(nano_gpt, capsys):
    seconds = fastest({"ours": our_step(BF16), "nanoGPT": nano_step(nano_gpt, torch.float32)})
    ratio = seconds["nanoGPT"] / seconds["ours"]
    with capsys.disabled():
        print(f"\n{ratio:.2f} x the tokens/s of nanoGPT in fp32")
    assert ratio >= 2


@pytest.mark.skipif(not NATIVE, reason="the processor does not multiply bf16 natively")
def test_a_compiled_step_in_bf16_uses_seven_tenths_of_the_matmul_peak(capsys):
    a, b = (torch.randn(2048, 2048).to(BF16) for _ in range(2))
    seconds = fastest({"step": our_step(BF16, compiled=True), "product": lambda: [a @ b for _ in range(8)]}, rounds=20)
    peak = 8 * 2 * 2048**3 / seconds["product"]
    mfu = our_model().flops_per_token(T) * B * T / seconds["step"] / peak
    with capsys.disabled():
        print(f"\n{mfu:.1%} of {peak / 1e9:.0f} GFLOP/s")
    assert mfu >= 0.7


class BareSteps(Callback):
    """Takes a step of a bare loop after each of Lightning's, and times both."""

    def __init__(self, step: Step):
        self.step = step
        self.mark: float | None = None
        self.lightning: list[float] = []
        self.bare: list[float] = []

    def on_train_batch_end(self, *args) -> None:
        start = time.perf_counter()
        if self.mark is not None:
            self.lightning.append(start - self.mark)
        self.step()
        self.mark = time.perf_counter()
        self.bare.append(self.mark - start)


def test_lightning_costs_three_hundredths_of_a_step_at_most(tokens_folder, tmp_path, monkeypatch, capsys):
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "enable_progress_bar": False},
        "model": {
            "architecture": {
                "class_path": "TransformerConfig",
                "init_args": {
                    "vocab_size": 512, "context": T, "layers": LAYERS, "width": D, "heads": HEADS, "activation": "gelu",
                },
            }
        },
        "data": {
            "path": str(tokens_folder), "context": T, "batch_tokens": B * T, "micro_batch": B, "total_tokens": 30 * B * T,
            "validation_tokens": 1000,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    clock = BareSteps(our_step(BF16 if NATIVE else torch.float32, vocab_size=512))
    original = TrainingCLI.instantiate_trainer

    def with_clock(self, **kwargs):
        trainer = original(self, **kwargs)
        trainer.callbacks.append(clock)  # pyright: ignore[reportAttributeAccessIssue]
        return trainer

    monkeypatch.setattr(TrainingCLI, "instantiate_trainer", with_clock)
    assert main(["fit", "--config", str(path)]) == 0
    ratio = min(clock.bare[WARM_UP:]) / min(clock.lightning[WARM_UP:])
    with capsys.disabled():
        print(f"\n{ratio:.3f} of the bare loop's tokens/s")
    assert ratio >= 0.97
