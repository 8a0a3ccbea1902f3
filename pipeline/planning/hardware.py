"""What a machine can do: presets from the makers' data sheets, or what `bench` has measured here.

Memory is what the maker prints; speeds of arithmetic are dense (without sparsity). Prices and shares of the peak (MFU) are no facts but
assumptions, to be replaced by one's own (`plan:` in the YAML, or options).
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import InputError, read_json

GIB = 2**30
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One GPU, or the processors of one process, and its share of a node."""

    name: str
    memory_bytes: float
    """Of one GPU; of a CPU, of the machine."""
    flops: dict[str, float]
    """Peak FLOP/s of dense matrix products by type: bf16, fp16, fp32."""
    memory_bandwidth: float
    """Bytes/s."""
    link_bandwidth: float
    """Bytes/s that one rank sends to others of its node."""
    network_bandwidth: float = 50 * GIGA
    """Bytes/s that one rank sends to other nodes: 400 Gbit/s a GPU, as clusters for training have it."""
    host_bandwidth: float = 25 * GIGA
    """Bytes/s between a GPU and the memory of its host, for offload: PCIe 4.0 x 16 in practice."""
    power_watts: float
    """Of the GPU at full load."""
    price_per_hour: float
    """Dollars; an assumption."""
    mfu: float
    """Share of the peak that training reaches; an assumption, or measured."""
    kind: str = "cuda"
    """cuda or cpu: which kernels a step has."""
    reserved_bytes: float = 2 * GIB
    """Of the driver, the communication library and their buffers, on a GPU."""
    usable: float = 0.95
    """Share of the rest that an allocator fills before it is too fragmented."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What `bench` saved."""

    @property
    def fits_bytes(self) -> float:
        """Bytes that a run may take of it."""
        return (self.memory_bytes - self.reserved_bytes) * self.usable

    @property
    def default_precision(self) -> str:
        return next((f"{kind}-mixed" for kind in ("bf16", "fp16") if kind in self.flops), "32-true").replace(
            "fp16", "16"
        )

    def peak(self, precision: str) -> float:
        """FLOP/s that MFU is a share of.

        Raises:
            InputError: it does not multiply that type.
        """
        kind = "bf16" if "bf16" in precision else "fp16" if precision.startswith("16") else "fp32"
        if kind not in self.flops:
            raise InputError(
                f"trainer.precision is {precision}, but {self.name} does not multiply {kind}: it has {', '.join(self.flops)}"
            )
        return self.flops[kind]


def _gpu(
    name: str,
    gib: float,
    bf16: float | None,
    fp16: float,
    fp32: float,
    memory: float,
    link: float,
    watts: float,
    price: float,
    mfu: float,
):
    flops = {"bf16": bf16, "fp16": fp16, "fp32": fp32}
    return Hardware(
        name=name, memory_bytes=gib * GIB, flops={kind: value * TERA for kind, value in flops.items() if value},
        memory_bandwidth=memory * GIGA, link_bandwidth=link * GIGA, power_watts=watts, price_per_hour=price, mfu=mfu,
    )  # fmt: skip


# Data sheets: NVIDIA V100 (2020), A100 (2021), H100 (2023; SXM), H200 (2024; SXM), HGX B200 (2025, per GPU), AMD Instinct MI300X (2023).
# fp32 is what torch computes by default, without TF32. Links are the sum of one direction. MFU: of the V100 the 28 TFLOP/s of the
# well-known estimate of GPT-3's cost; of the A100 45 % (llm-foundry and TinyLlama publish 45 to 64 %), of the H100 40 % (Megatron-LM
# publishes 41 to 48 %); lower where software is younger.
PRESETS = {
    preset.name: preset
    for preset in (
        _gpu("V100", 32, None, 125, 15.7, 900, 150, 300, 1.50, 28 / 125),
        _gpu("A100-40", 40, 312, 312, 19.5, 1555, 300, 400, 1.30, 0.45),
        _gpu("A100-80", 80, 312, 312, 19.5, 2039, 300, 400, 1.80, 0.45),
        _gpu("H100", 80, 989, 989, 67, 3350, 450, 700, 2.50, 0.40),
        _gpu("H200", 141 * 1e9 / GIB, 989, 989, 67, 4800, 450, 700, 3.00, 0.40),
        _gpu("B200", 180 * 1e9 / GIB, 2250, 2250, 75, 7700, 900, 1000, 4.50, 0.35),
        _gpu("MI300X", 192, 1307, 1307, 163.4, 5300, 448, 750, 2.20, 0.30),
    )
}


def this_cpu() -> Hardware:
    """This machine's processors and memory, at 50 GFLOP/s a core, until `bench` has measured them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        name="CPU", kind="cpu", memory_bytes=memory, flops={"fp32": 50 * GIGA * cores, "bf16": 50 * GIGA * cores},
        memory_bandwidth=10 * GIGA * cores, link_bandwidth=1 * GIGA, network_bandwidth=1 * GIGA, power_watts=10.0 * cores,
        price_per_hour=0.05 * cores, mfu=0.5, reserved_bytes=1 * GIB, usable=0.9,
    )  # fmt: skip


def default_bench_file() -> Path:
    """Where `bench` saves what it has measured."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pretraining-pipeline" / "bench.json"


def measured(path: Path) -> Hardware:
    """The machine that `bench` has measured.

    Raises:
        InputError: the file is not one of `bench`'s.
    """
    content = read_json(path)
    try:
        described, speeds = content["hardware"], content["measured"]
        base = this_cpu() if described["kind"] == "cpu" else nearest_preset(described["name"])
        values = {name: getattr(base, name) for name in Hardware.__dataclass_fields__}
        return Hardware(**values | described | {"measured": speeds})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not what `python -m pipeline bench` writes ({error}): run it again") from error


def nearest_preset(name: str) -> Hardware:
    """The preset whose name occurs in what a driver calls its GPU; price, power and links come from there."""
    flat = name.upper().replace(" ", "").replace("-", "")
    found = [preset for preset in PRESETS.values() if preset.name.split("-")[0] in flat]
    return found[-1] if found else PRESETS["A100-80"]


def choose(gpu: str | None, bench: str | None) -> tuple[Hardware, str]:
    """The machine to plan for, and in words where its figures are from.

    Args:
        gpu: name of a preset, in any case; None: what `bench` has measured, else this machine's processors.
        bench: file of `bench`; its default place when not given.

    Raises:
        InputError: no such preset, or no such file.
    """
    if gpu is not None:
        if gpu.upper() == "CPU":
            return this_cpu(), "an assumption of 50 GFLOP/s a core; `python -m pipeline bench` measures"
        if gpu.upper() not in PRESETS:
            raise InputError(
                f"--gpu is {gpu}: it must be one of {', '.join([*PRESETS, 'CPU'])}, or what `bench` has measured"
            )
        return PRESETS[gpu.upper()], "its data sheet; price and MFU are assumptions"
    file = Path(bench) if bench else default_bench_file()
    if file.is_file():
        return measured(file), f"measured by bench ({file})"
    if bench:
        raise InputError(f"There is no {bench}: write it with `python -m pipeline bench --output {bench}`")
    return (
        this_cpu(),
        "an assumption of 50 GFLOP/s a core; `python -m pipeline bench` measures, --gpu names another machine",
    )
