"""What a training run will need, before it begins: `lorry estimate`."""
