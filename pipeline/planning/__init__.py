"""What a run will need, before it runs: parameters, FLOPs, memory, time, cost and disk, from the run's own YAML and a few figures of a machine."""
