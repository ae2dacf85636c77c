"""The city search finds what was asked for, from an index that was built and from one that came out of an arena."""

import math
from collections.abc import Iterator

import pytest

from apps.cities.city import City
from apps.cities.index import Index, build_index
from apps.cities.search import CitySearch
from persistmem.testing import new_arena

CITIES = [
    City("London", "United Kingdom", 8_900_000, 51.5, -0.1, "Europe/London", ("Londres", "Лондон")),
    City("Munich", "Germany", 1_500_000, 48.1, 11.6, "Europe/Berlin", ("München", "Monaco di Baviera")),
    City("Quito", "Ecuador", 1_400_000, -0.2, -78.5, "America/Guayaquil", ()),
    City("London", "Canada", 400_000, 43.0, -81.2, "America/Toronto", ()),
    City("Londrina", "Brazil", 390_000, -23.3, -51.2, "America/Sao_Paulo", ()),
    City("Suva", "Fiji", 90_000, -18.1, 178.4, "Pacific/Fiji", ()),
    City("Apia", "Samoa", 40_000, -13.8, -171.8, "Pacific/Apia", ()),
]


@pytest.fixture(params=["built", "restored", "restored as views"])
def search(request: pytest.FixtureRequest) -> Iterator[CitySearch]:
    index: Index = build_index(CITIES)
    if request.param == "built":
        yield CitySearch(index)
        return
    with new_arena() as arena:
        arena.snapshot("index", index)
        yield CitySearch(arena.restore("index", copy=request.param == "restored"))


def found(search: CitySearch, query: str) -> list[tuple[str, str]]:
    return [(hit.name, hit.country) for hit in search.named(query)]


def test_of_two_cities_of_one_name_the_larger_comes_first(search: CitySearch) -> None:
    assert found(search, "London")[:2] == [("London", "United Kingdom"), ("London", "Canada")]


def test_the_beginning_of_a_name_is_enough(search: CitySearch) -> None:
    assert found(search, "londri") == [("Londrina", "Brazil")]


@pytest.mark.parametrize("query", ["MÜNCHEN", "munchen", "monaco-di baviera"])
def test_case_accents_and_punctuation_make_no_difference(search: CitySearch, query: str) -> None:
    assert found(search, query) == [("Munich", "Germany")]


def test_a_name_in_another_script_is_found(search: CitySearch) -> None:
    assert found(search, "лондон") == [("London", "United Kingdom")]


def test_a_misspelled_name_is_found(search: CitySearch) -> None:
    assert found(search, "Mumich") == [("Munich", "Germany")]


@pytest.mark.parametrize("query", ["", "  -", "xqzw"])
def test_what_is_no_city_finds_nothing(search: CitySearch, query: str) -> None:
    assert found(search, query) == []


def test_the_nearest_city_may_lie_across_the_date_line(search: CitySearch) -> None:
    hits = search.nearest(-16.0, -179.0, limit=2)
    assert [hit.name for hit in hits] == ["Suva", "Apia"]


def test_distances_follow_the_surface_of_the_earth(search: CitySearch) -> None:
    [quito] = [hit for hit in search.nearest(-0.2 + 90, -78.5, limit=len(CITIES)) if hit.name == "Quito"]
    assert math.isclose(quito.distance_km or 0, 6371.0 * math.pi / 2, rel_tol=1e-6)
