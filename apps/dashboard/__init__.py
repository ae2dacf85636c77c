"""The dashboard: arenas, caches, integrity and kernel upgrades as an operator wants to see them, in a browser."""
