"""Train, judge and report language models on the shards that `data_prep` writes."""
