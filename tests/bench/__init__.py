"""The benchmark: ratios measured in one run, against bounds. Not collected by pytest; ``python -m tests.bench``."""
