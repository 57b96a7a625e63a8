"""The contract of an output: plans, parts, publishing, reading, audits. Loads no model and no Ray."""
