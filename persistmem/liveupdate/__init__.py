"""The kernel's live-update device, and a simulation of it; moves file descriptors and knows nothing of arenas."""
