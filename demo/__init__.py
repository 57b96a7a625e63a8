"""`make demo`: the real job on a small synthesised corpus, and its tables printed for a person."""
