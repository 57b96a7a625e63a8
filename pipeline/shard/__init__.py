"""Processing of one shard, from plan rows to the committed part, without Ray."""
