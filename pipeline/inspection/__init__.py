"""Measurements inside a model: where attention looks, and how far back a gradient reaches. `reporting` draws them."""
