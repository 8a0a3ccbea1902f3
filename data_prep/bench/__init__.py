"""`python -m data_prep bench`: how fast this machine prepares a corpus, beside what the field uses, in one run."""
