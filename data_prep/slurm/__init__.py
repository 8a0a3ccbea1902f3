"""Data preparation as jobs of a Slurm cluster: every stage an array of jobs, each after the one before."""
