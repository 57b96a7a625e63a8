"""Generation of the small models in demo/models and the recordings in demo/heldout, from espeak-ng and fixed seeds."""
