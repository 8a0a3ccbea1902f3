"""Bytes that one rank holds, by part, for one device, DDP and ZeRO: arithmetic on what a rehearsal has counted."""

from dataclasses import asdict, dataclass, replace

from pipeline.planning.rehearsal import OF_WEIGHTS, Rehearsal

LIVE_PARAMETERS = 10**9
"""Parameters that stage 3 holds gathered at most: DeepSpeed's stage3_max_live_parameters."""


@dataclass(frozen=True)
class Layout:
    """How ranks share the state."""

    ranks: int
    stage: int | None
    """Of ZeRO; 0: DDP, None: one device."""
    offload_optimizer: str | None = None
    """cpu or nvme, where the optimizer's part lies there."""
    offload_parameters: str | None = None
    bucket_megabytes: int = 200
    overlap: bool = True

    @property
    def name(self) -> str:
        kind = {None: "single", 0: "DDP"}.get(self.stage, f"ZeRO {self.stage}")
        return f"{kind} + offload" if self.offload_optimizer or self.offload_parameters else kind


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank's device at the peak of a step, by part; their sum is the peak."""

    weights: float
    gradients: float
    optimizer: float
    """Moments and, where there are any, fp32 masters and the moving average of the weights."""
    activations: float
    """What the backward pass waits for."""
    logits: float
    """Of a chunk of the head, and the gradients that it makes on the way."""
    buffers: float
    """Of communication, weights gathered by stage 3, autocast's copies of weights, and passing results."""
    host: float = 0.0
    """Bytes in the host's memory or on its disk, of what is offloaded; not in the sum."""

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if name != "host"}


def memory_of(
    step: Rehearsal, layout: Layout, precision: str, *, parameters: int, largest: int, moments: float, averaged: bool = False,
    accumulates: bool = False,
) -> Memory:  # fmt: skip
    """What a rank holds.

    Args:
        step: of one micro-batch.
        parameters: of the model.
        largest: parameters of its largest tensor.
        moments: numbers that the optimizer keeps for each parameter, on average.
        averaged: whether a moving average of the weights is kept.
        accumulates: whether a step has several micro-batches.
    """
    N, R = parameters, layout.ranks
    half = precision in OF_WEIGHTS
    of_weight = 2 if half else 4
    state = moments + (1 if averaged else 0)
    stage = layout.stage or 0
    # DDP's gradients lie in its buckets, and a part that is cut lies there between steps, too; of one device they come with the step.
    lasting = layout.stage is not None or accumulates or half
    held = step.peak_without_gradients if lasting else step.peak
    passing = max(0.0, step.passing - step.in_head)
    gradients = of_weight * N if lasting else max(0.0, held - step.peak_without_gradients)
    if stage == 0:
        # With bf16 weights fp32 masters are stepped, with fp32 gradients, and the model's own last until they are added.
        optimizer = 4 * state * N + (4 * N if half else 0)
        gradients += 4 * N if half else 0
        buffers = of_weight * largest if lasting else 0.0
        weights = of_weight * N
    else:
        optimizer = 4 * (1 + state) * N / R
        weights = of_weight * N if stage < 3 else of_weight * N / R
        gradients = of_weight * N if stage == 1 else of_weight * N / R
        bucket = min(layout.bucket_megabytes * 2**20 / 2 * of_weight, of_weight * N)
        buffers = bucket * (2 if layout.overlap else 1)
        if stage == 3:
            buffers += of_weight * min(N, LIVE_PARAMETERS + largest)
    logits = min(step.in_head, step.passing) + step.saved_by_head
    memory = Memory(weights, gradients, optimizer, step.saved, logits, buffers + passing + step.copies)
    host = 0.0
    if layout.offload_optimizer:
        # Its step is taken there, so its gradients go there too.
        host += memory.optimizer + 4 * N / R
        memory = replace(memory, optimizer=0.0, gradients=memory.gradients if stage == 1 else 0.0)
    if layout.offload_parameters:
        host += memory.weights
        memory = replace(memory, weights=0.0)
    return replace(memory, host=host)
