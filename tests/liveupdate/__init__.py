"""The simulator's own promises: the ABI byte for byte, hostile images, what only a simulated kernel does."""
