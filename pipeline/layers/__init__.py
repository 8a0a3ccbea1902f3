"""The leaves of the models. They take plain arguments, know nothing of configuration or training, and could be pasted elsewhere."""
