"""From an output to answers: summaries, drift, search, and copies of its rows in other shapes. No Ray, no models."""
