"""One page a person can read about a run, an evaluation or a summary: a single HTML file that needs no network."""
