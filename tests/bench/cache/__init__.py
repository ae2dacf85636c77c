"""Benchmarks of ``persistmem.Cache``. Run by :mod:`tests.bench`; ``groups`` lists them."""
