"""Filters: which documents of a source are kept, by the rules of Gopher, C4 and FineWeb, and what is repaired in them."""
