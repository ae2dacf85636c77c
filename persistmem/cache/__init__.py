"""A cache in an arena. Built on regions; must not know carriers or agents but through ``attach``."""

from persistmem.cache.cache import Cache
from persistmem.cache.counting import CacheStats

__all__ = ["Cache", "CacheStats"]
