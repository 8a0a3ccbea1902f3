"""What a run costs, as arithmetic on plain numbers: no torch, no data, no clock."""


def dense_flops_per_token(parameters: int) -> int:
    """FLOPs to train on one token: 2 per weight forward, 4 backward (Kaplan et al. 2020, section 2.1).

    Args:
        parameters: those that multiply something; tables that are only looked up do not count.
    """
    return 6 * parameters


def attention_flops_per_token(width: int, span: int) -> int:
    """FLOPs to train on one token for the scores and sums of one attention layer (Chowdhery et al. 2022, appendix B; the
    causal half is not deducted, so figures compare with published MFU).

    Args:
        width: of all query heads together.
        span: tokens that a token looks at: the context, or a band.
    """
    return 12 * width * span


def transformer_flops_per_token(parameters: int, layers: int, width: int, context: int) -> int:
    """`dense_flops_per_token` and `attention_flops_per_token` of so many layers that look at the whole context."""
    return dense_flops_per_token(parameters) + layers * attention_flops_per_token(width, context)


PETAFLOP_S_DAY = 1e15 * 24 * 3600
"""FLOPs of a day at 10^15 a second, the unit of Kaplan et al. 2020 and Brown et al. 2020."""


def device_seconds(flops: float, peak: float, mfu: float) -> float:
    """Seconds of one device, together of all.

    Args:
        peak: FLOP/s of one device.
        mfu: share of it that training uses.
    """
    return flops / (peak * mfu)


def jobs_of(seconds: float, limit: float | None, lost: float) -> int:
    """Jobs that a run takes one after another, where each may last `limit` seconds and loses some to its start and its last save.

    Raises:
        ValueError: the limit leaves nothing to train in.
    """
    if limit is None:
        return 1
    if limit <= lost:
        raise ValueError(
            f"A time limit of {limit:.0f} s leaves nothing to train in, since a job loses about {lost:.0f} s to its start and its last "
            "save: raise it"
        )
    return max(1, -int(-seconds // (limit - lost)))
