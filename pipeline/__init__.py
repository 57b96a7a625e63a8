"""Turn corpora of speech into tables of emotion: readers, models, plan, commit and the Ray engine."""

__version__ = "0.1.0"
