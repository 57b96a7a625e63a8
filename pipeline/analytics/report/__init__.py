"""Reports on a run, an evaluation or a summary, as a single HTML file that needs no network."""
