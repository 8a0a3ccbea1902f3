"""Judging a trained model with lm-evaluation-harness: the adapter, the shipped tasks, and the protocol."""
