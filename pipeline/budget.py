"""What a run costs, as arithmetic on plain numbers: no torch, no data, no clock."""


def dense_flops_per_token(parameters: int) -> int:
    """FLOPs to train on one token: 2 per weight forward, 4 backward (Kaplan et al. 2020, section 2.1).

    Args:
        parameters: those that multiply something; tables that are only looked up do not count.
    """
    return 6 * parameters


def transformer_flops_per_token(parameters: int, layers: int, width: int, context: int) -> int:
    """`dense_flops_per_token` and the attention scores and sums: 12 x layers x width x context
    (Chowdhery et al. 2022, appendix B; the causal half is not deducted, so figures compare with published MFU).
    """
    return dense_flops_per_token(parameters) + 12 * layers * width * context
