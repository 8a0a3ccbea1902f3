"""When things happen around the steps: logging, saving, stopping, recording. What a step is stands in `pipeline.task`."""
