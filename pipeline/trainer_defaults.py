"""What the Trainer is told where a run's YAML says nothing; `fit` and `plan` both read it."""

import torch

TRAINER_DEFAULTS = {
    "default_root_dir": "runs/unnamed",
    "gradient_clip_val": 1.0,
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}


def default_precision() -> str:
    """bf16 where the processor multiplies it natively, else fp16 on a GPU that has units for it (Volta, Turing), else fp32."""
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed"
        return "16-mixed" if torch.cuda.get_device_capability() >= (7, 0) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32-true"
