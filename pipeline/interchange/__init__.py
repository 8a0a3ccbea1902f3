"""Models in and out: our decoder-only transformers as Hugging Face folders, and such folders as our runs."""
