"""The models and what loads them. Nothing below here imports ray."""
