"""Entry points: one module per job, run as `python -m jobs.NAME` or `speech-emotion NAME`."""

from jobs import interrupts

interrupts.watch_start()
