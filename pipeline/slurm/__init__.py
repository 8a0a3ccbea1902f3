"""Jobs on a Slurm cluster: written, submitted, watched, started again."""
