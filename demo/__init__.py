"""`make demo`: the real job on a small synthesised corpus, with its tables printed."""
