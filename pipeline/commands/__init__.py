"""The verbs that are not the Trainer's. Each module has `add_arguments(parser)` and `run(arguments)`; see `pipeline.cli`."""
