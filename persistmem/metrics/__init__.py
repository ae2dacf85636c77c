"""Metrics of arenas, caches and handovers, for Prometheus. ``persistmem metrics`` is how to get them."""
