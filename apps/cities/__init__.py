"""A city search that is ready at once after a kernel upgrade: its index lives in an arena.

``python -m apps.cities QUERY...`` searches; ``python -m apps.cities.demo`` shows a cold and a warm start.
"""
