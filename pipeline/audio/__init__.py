"""Audio decoding to 16 kHz mono: decoders, checks before decoding, a sandbox, and segmentation by voice activity."""
