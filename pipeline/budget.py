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
