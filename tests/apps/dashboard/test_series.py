"""Hit ratio over time: of each interval by itself, broken where nothing was read, and bounded."""

import re
from dataclasses import replace
from uuid import UUID

from apps.dashboard import charts
from apps.dashboard.series import SAMPLES_MAX, CacheKey, Sample, Series
from persistmem import CacheStats
from persistmem.cache.viewing import LogReading, Reading

KEY = CacheKey(UUID(int=1), "cache")
EMPTY = Reading(
    CacheStats(0, 0, 0, 0, 0, 0, 0, 0, 100, 0, 1000, 0, 1), small=LogReading(100, 0, 0), main=LogReading(900, 0, 0)
)


def reading(hits: int, misses: int) -> Reading:
    return replace(EMPTY, stats=replace(EMPTY.stats, hits=hits, misses=misses))


def series_of(*counted: tuple[float, int, int], shortest: float = 0.5) -> tuple[Sample, ...]:
    """What was sampled when these hits and misses had been counted at these times."""
    series = Series(shortest)
    for at, hits, misses in counted:
        series.add([(KEY, reading(hits, misses))], at=at, monotonic=at, keep=60)
    return series.of(KEY)


def test_each_sample_is_of_its_own_interval() -> None:
    samples = series_of((10, 100, 100), (12, 130, 110), (13, 130, 130), (14, 130, 130))
    assert [(s.at, s.activity.hit_ratio, s.activity.reads) for s in samples] == [
        (12, 0.75, 20), (13, 0.0, 20), (14, None, 0),
    ]  # fmt: skip


def test_two_looks_at_nearly_the_same_time_are_one() -> None:
    samples = series_of((10, 0, 0), (10.1, 50, 0), (11, 80, 20))
    assert [(s.activity.hit_ratio, s.activity.reads) for s in samples] == [(0.8, 100)]


def test_a_cache_that_is_away_for_a_while_goes_on_where_it_was() -> None:
    series = Series(0.5)
    series.add([(KEY, reading(10, 0))], at=10, monotonic=10, keep=60)
    series.add([], at=11, monotonic=11, keep=60)
    series.add([(KEY, reading(20, 10))], at=20, monotonic=20, keep=60)
    assert [sample.activity.hit_ratio for sample in series.of(KEY)] == [0.5]
    series.add([], at=81, monotonic=81, keep=60)
    assert series.of(KEY) == ()


def test_no_cache_takes_more_memory_the_longer_it_is_watched() -> None:
    samples = series_of(*((at, at, 0) for at in range(SAMPLES_MAX + 50)))
    assert len(samples) == SAMPLES_MAX
    assert samples[-1].at == SAMPLES_MAX + 49


def test_the_line_is_as_high_as_the_hit_ratio_and_breaks_where_nothing_was_read() -> None:
    samples = series_of((0, 0, 0), (1, 10, 0), (2, 15, 5), (3, 15, 5), (4, 15, 15), (90, 16, 16), (91, 17, 17))
    chart = charts.plot(samples, [(50, "9.9"), (-5, "too old")], end=100, span=100, every=1)
    top, bottom = charts.RATIO_TOP, charts.RATIO_TOP + charts.RATIO_HEIGHT
    x = charts.WIDTH / 100
    middle = (top + bottom) / 2
    points = [(letter, float(x), float(y)) for letter, x, y in re.findall(r"([ML])(\S+?) ([\d.]+)", chart.ratio)]
    assert points == [
        ("M", x * 1, top),
        ("L", x * 2, middle),
        ("M", x * 4, bottom),
        ("M", x * 90, middle),
        ("L", x * 91, middle),
    ]
    assert chart.reads_peak == 10
    assert chart.reads.count("M") == 5
    assert [(mark.x, mark.label) for mark in chart.marks] == [(x * 50, "9.9")]


def test_what_is_out_of_sight_is_not_drawn() -> None:
    chart = charts.plot(series_of((0, 0, 0), (1, 10, 0)), [], end=100, span=50, every=1)
    assert (chart.ratio, chart.reads, chart.reads_peak) == ("", "", 0)
