"""DeepSpeed's ZeRO through Lightning, on CUDA and, for tests, on CPU processes, as a strategy whose state can be read and written.

Lightning's strategy is corrected in three places: it refuses CPUs, it divides the loss by an accumulation that the engine divides
by again, and its engine counts micro-batches, where here the loader says which of them ends a step.
"""

import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from data_prep.files import InputError
from pipeline.distributed.replicated import fill_state, named_weights
from pipeline.distributed.sharded_state import ShardedState
from pipeline.state_files import WEIGHTS, Piece

Device = Literal["cpu", "nvme"]


class ZeRO(ShardedState, DeepSpeedStrategy):
    """Partitions what DDP would hold on every process (Rajbhandari et al. 2020): stage 1 the optimizer's state, 2 gradients too, 3
    also the weights, which are gathered layer by layer as they are needed.

    Args:
        stage: What is partitioned.
        offload_optimizer: Where the optimizer's state and its step live instead of on the GPU.
        offload_parameters: Of stage 3: where weights wait instead of on the GPU.
        nvme_path: Folder of a local disk for what is offloaded to nvme.
        bucket_megabytes: Gradients are reduced, and weights gathered, in buckets of this size.
        overlap: Whether gradients are reduced while the backward pass goes on.
    """

    partitioned = True
    clips_gradients = True
    keeps_master_weights = True

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: Device | None = None,
        offload_parameters: Device | None = None,
        nvme_path: str | None = None,
        bucket_megabytes: int = 200,
        overlap: bool = True,
    ):
        if stage not in (1, 2, 3):
            raise ValueError(f"ZeRO's stage is {stage}: it must be 1, 2 or 3; 0 is pipeline.distributed.DDP")
        if offload_parameters and stage != 3:
            raise ValueError(
                f"offload_parameters is {offload_parameters} with ZeRO stage {stage}: only stage 3 has weights to offload"
            )
        if "nvme" in (offload_optimizer, offload_parameters):
            if nvme_path is None:
                raise ValueError("Offloading to nvme needs nvme_path: name a folder on a local disk")
            if stage != 3:
                raise ValueError(f"offload_optimizer is nvme with ZeRO stage {stage}: only stage 3 offloads to nvme")
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        elements = bucket_megabytes * 2**20 // 2
        super().__init__(
            stage=stage, overlap_comm=overlap, allgather_bucket_size=elements, reduce_bucket_size=elements,
            offload_optimizer=offload_optimizer is not None, offload_optimizer_device=offload_optimizer or "cpu",
            offload_parameters=offload_parameters is not None, offload_params_device=offload_parameters or "cpu",
            nvme_path=nvme_path or "", remote_device=offload_parameters or "cpu",
            # "auto" would build the loader before a checkpoint is restored.
            logging_batch_size_per_gpu=1,
        )  # fmt: skip
        self.stage = stage
        assert isinstance(self.config, dict)
        # Our optimizers are torch's: DeepSpeed's own would be compiled for minutes at the first start.
        self.config["zero_force_ds_cpu_optimizer"] = False
        self.config["zero_optimization"]["memory_efficient_linear"] = False

    @property
    def label(self) -> str:
        return f"ZeRO stage {self.stage}"

    # -- corrections of Lightning's strategy

    def setup_environment(self) -> None:
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
            return
        if not isinstance(self.accelerator, CPUAccelerator):
            raise InputError(
                f"ZeRO runs on CUDA and on CPUs, not on {type(self.accelerator).__name__}: set trainer.accelerator"
            )
        import deepspeed
        from deepspeed.accelerator import get_accelerator, set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        if get_accelerator().device_name() != "cpu":  # pyright: ignore[reportOptionalMemberAccess]
            set_accelerator(CPU_Accelerator())
        # Its shared-memory all-reduce is compiled for a minute at the first start; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.parallel_devices = [torch.device("cpu", index) for index in range(len(self.parallel_devices or [0]))]
        # Over the head of DeepSpeedStrategy, whose own method only adds that it must be CUDA.
        super(DeepSpeedStrategy, self).setup_environment()

    def setup(self, trainer: Any) -> None:
        optimizer = getattr(self.task, "optimizer", None)
        if getattr(optimizer, "needs_whole_matrices", False):
            raise InputError(
                f"{type(optimizer).__name__} steps whole matrices, which ZeRO cuts: use AdamW, or pipeline.distributed.DDP"
            )
        assert isinstance(self.config, dict)
        self.config["gradient_clipping"] = float(trainer.gradient_clip_val or 0.0)
        super().setup(trainer)
        if self.optimizers and self.stage != 3 and getattr(getattr(self.task, "model", None), "graph_varies", False):
            reduce_in_order(self.zero_optimizer)
        if self.optimizers and hasattr(self.task, "refuses_step"):
            self.last_norm: Tensor | float = math.nan
            ask_before_steps(self)

    def _format_config(self) -> None:
        super()._format_config()
        assert isinstance(self.config, dict)
        if self.precision_plugin.precision == "bf16-mixed":
            # Lightning would cast the weights, which is bf16-true. Gradients are summed over the ranks in fp32.
            self.config.pop("bf16", None)
            self.config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.deepspeed_engine.set_gradient_accumulation_boundary(batch.ends_step)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @property
    def gradient_norm(self) -> float:
        """Of the last step's gradient over all ranks, before clipping; nan where it was not finite."""
        return float(self.last_norm)

    # -- state

    def local_state(self) -> Iterator[Piece]:
        training = bool(self.optimizers)
        for name, parameter in named_weights(self.task):
            if self.stage == 3:
                yield from self.partition_of(name, parameter, training)
            elif training:
                yield from self.fragments_of(name, parameter)
            else:
                yield Piece(WEIGHTS, name, tuple(parameter.shape), 0, parameter.data.view(-1))

    @property
    def zero_optimizer(self) -> Any:
        return self.deepspeed_engine.optimizer

    def fragments_of(self, name: str, parameter: Any) -> Iterator[Piece]:
        """Stages 1 and 2: the part of a parameter that lies in this rank's flat fp32 buffer."""
        mapping = parameter._hp_mapping
        if mapping is None:
            return
        start, shape = mapping.lp_fragment_address.start, tuple(parameter.shape)
        yield Piece(WEIGHTS, name, shape, start, mapping.hp_fragment)
        flat = self.zero_optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        address = mapping.hp_fragment_address
        for kind, values in self.zero_optimizer.optimizer.state.get(flat, {}).items():
            if torch.is_tensor(values) and values.shape == flat.shape:
                yield Piece(kind, name, shape, start, values.narrow(0, address.start, address.numel))

    def partition_of(self, name: str, parameter: Any, training: bool) -> Iterator[Piece]:
        """Stage 3: this rank's equal part of a parameter, without what fills the last one up."""
        shape, size = tuple(parameter.ds_shape), parameter.ds_tensor.ds_numel
        start = min(self.global_rank * size, parameter.ds_numel)
        length = min(size, parameter.ds_numel - start)
        if not training:
            yield Piece(WEIGHTS, name, shape, start, parameter.ds_tensor.data.view(-1)[:length])
            return
        optimizer = self.zero_optimizer
        group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        swapped = optimizer._swappable_optimizer_subgroup(group)
        flat = optimizer.fp32_partitioned_groups_flat[group]
        state = optimizer.optimizer.state.get(flat, {})
        tensors = {WEIGHTS: flat} | {kind: v for kind, v in state.items() if torch.is_tensor(v) and v.dim()}
        for kind, tensor in tensors.items():
            if swapped:
                values = optimizer.get_local_fp32_param(parameter, None if kind == WEIGHTS else kind).clone()
                loaded = partial(self.write_swapped, parameter, kind, values)
                yield Piece(kind, name, shape, start, values[:length], loaded)
            else:
                yield Piece(kind, name, shape, start, tensor.narrow(0, offset, numel)[:length])

    def write_swapped(self, parameter: Any, kind: str, filled: Tensor, values: Tensor) -> None:
        """Give a part that waits on a disk new values."""
        filled[: values.numel()] = values
        self.zero_optimizer.set_local_hp_param(filled, parameter, None if kind == WEIGHTS else kind)

    def flat_groups(self) -> list[Tensor]:
        """The flat fp32 tensors that the optimizer steps."""
        optimizer = self.zero_optimizer
        return optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups

    def group_of(self, parameter: Any) -> Tensor | None:
        if self.stage == 3:
            group, *_ = self.zero_optimizer.grad_position[self.zero_optimizer.get_param_id(parameter)]
            return self.flat_groups()[group]
        mapping = parameter._hp_mapping
        return None if mapping is None else self.flat_groups()[mapping.param_group_index]

    def optimizer_scalars(self) -> dict[str, dict[str, float]]:
        scalars = {}
        for name, parameter in named_weights(self.task):
            flat = self.group_of(parameter)
            state = {} if flat is None else self.zero_optimizer.optimizer.state.get(flat, {})
            if state:
                scalars[name] = {k: float(v) for k, v in state.items() if not torch.is_tensor(v) or not v.dim()}
        return scalars

    def create_optimizer_state(self, kinds: set[str], scalars: Mapping[str, Mapping[str, float]]) -> None:
        states = self.zero_optimizer.optimizer.state
        for name, parameter in named_weights(self.task):
            flat = self.group_of(parameter)
            if flat is None or name not in scalars:
                continue
            # Tensors that are there already, in a run that goes back, are written to in place.
            missing = sorted(kind for kind in kinds if not torch.is_tensor(states[flat].get(kind)))
            fill_state(states[flat], flat, missing, scalars[name])

    def state_loaded(self) -> None:
        if not self.optimizers:
            return
        optimizer = self.zero_optimizer
        if self.stage != 3:
            optimizer.update_lp_params()
            return
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def ask_before_steps(strategy: ZeRO) -> None:
    """Have the task asked, with the norm of the gradient, before each step of DeepSpeed's optimizer.

    A step that the task refuses is left out as DeepSpeed leaves out those whose gradients overflow: it lets go of the gradients and
    touches nothing else. The norm is what the optimizer computes anyway; where it finds gradients that are not finite before that,
    the task is asked with nan.
    """
    optimizer, found = strategy.zero_optimizer, []
    # Stages 1 and 2 have one function for the norm; stage 3 combines that of each group.
    name = "_get_norm_groups" if strategy.stage == 3 else "scaled_global_norm"
    norm_of, update_scale = getattr(optimizer, name), optimizer._update_scale

    def remember(*args: Any, **kwargs: Any) -> Any:
        result = norm_of(*args, **kwargs)
        found.append(combine_norms(result) if strategy.stage == 3 else result)
        return result

    def decide(has_overflow: bool = False) -> None:
        # Both know the norm by now, and look at `overflow` after this.
        norm = found.pop() / optimizer.loss_scale if found else math.nan
        strategy.last_norm = torch.where(norm < 0, math.nan, norm) if torch.is_tensor(norm) else norm
        half = optimizer.dtype == torch.float16
        # Under fp16 gradients overflow now and then until the scale of the loss fits: that is not a spike.
        refused = not (half and has_overflow) and strategy.task.refuses_step(strategy.last_norm)  # pyright: ignore[reportCallIssue]
        update_scale(has_overflow)
        if refused:
            optimizer.overflow = True

    setattr(optimizer, name, remember)
    optimizer._update_scale = decide


def combine_norms(norms: list[Any]) -> Any:
    """The norm of all groups from that of each, as DeepSpeed combines them."""
    from deepspeed.runtime.utils import combine_grad_norm_groups

    return combine_grad_norm_groups(norms)


def reduce_in_order(optimizer: Any) -> None:
    """Make stages 1 and 2 reduce gradients in the order of the parameters, after the backward pass.

    They reduce them as they come, which mixes them up, without a word, where they come in another order on another rank.
    """
    order = {parameter: place for place, parameter in enumerate(p for group in optimizer.bit16_groups for p in group)}
    reduce, finish = (
        optimizer.reduce_ready_partitions_and_remove_grads,
        optimizer.independent_gradient_partition_epilogue,
    )
    waiting: list[tuple[Any, int]] = []

    def reduce_all() -> None:
        for parameter, group in sorted(waiting, key=lambda each: order[each[0]]):
            reduce(parameter, group)
        waiting.clear()
        finish()

    optimizer.reduce_ready_partitions_and_remove_grads = lambda parameter, group: waiting.append((parameter, group))
    optimizer.independent_gradient_partition_epilogue = reduce_all
