"""A city, wherever it was read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class City:
    """A city, as GeoNames knows it."""

    name: str
    country: str
    population: int
    latitude: float
    """Degrees, north positive."""
    longitude: float
    """Degrees, east positive."""
    timezone: str
    alternate_names: tuple[str, ...]
