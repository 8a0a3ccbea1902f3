"""Turning next-token probabilities into text."""
