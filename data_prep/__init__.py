"""From a corpus to token shards: collect documents, drop duplicates, split, train a tokenizer, tokenize.

Each stage writes a folder that can be opened and that is made again only when what it depends on has changed.
"""
