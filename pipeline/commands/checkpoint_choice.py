"""Which weights of a run a command uses: one pair of options for all of them."""

import argparse


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="best", help="best, last or the path of a checkpoint (default: best)")
    parser.add_argument(
        "--ema", action="store_true", help="the moving average of the weights, of a run with model.ema_half_life_tokens"
    )
