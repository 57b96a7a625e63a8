"""One shard from plan rows to its committed part, without Ray."""
