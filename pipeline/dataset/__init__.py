"""The output's contract: plans, parts, publishing, reading and audits. Imports no model and no Ray."""
