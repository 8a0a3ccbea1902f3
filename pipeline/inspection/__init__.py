"""Looking into a trained run: where attention looks, how far back a gradient reaches, which documents each step read."""
