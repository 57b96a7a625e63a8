"""How good an output is: its labels and words against those its manifest brought."""
