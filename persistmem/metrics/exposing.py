"""Readings in Prometheus's formats: as text, over HTTP, in a file. The one module that knows ``prometheus_client``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from persistmem.errors import MissingLibraryError, SystemCallError
from persistmem.metrics.families import FAMILIES, Family
from persistmem.metrics.reading import Reading

try:
    from prometheus_client import CollectorRegistry, generate_latest, start_http_server, write_to_textfile
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingLibraryError("metrics are made by prometheus-client: install persistmem[metrics]") from error

_UNITS: Final = "seconds", "bytes"


class ReadingCollector(Collector):
    """Reads at each scrape; scrapes may come from several threads."""

    def __init__(self, read: Callable[[], Reading], tell: Callable[[str], None]) -> None:
        """``tell`` is given each problem once, for as long as it lasts."""
        self._read = read
        self._tell = tell
        self._known: tuple[str, ...] = ()

    def collect(self) -> Iterator[Metric]:
        """Read, and give every metric that has a sample."""
        reading = self._read()
        for problem in reading.problems:
            if problem not in self._known:
                self._tell(problem)
        self._known = reading.problems
        return (metric for family in FAMILIES if (metric := _metric(family, reading)).samples)

    def describe(self) -> Iterator[Metric]:
        """Give every metric without samples, so that a client may ask for some by name. Reads nothing."""
        return (_metric(family, None) for family in FAMILIES)


def registry(read: Callable[[], Reading], tell: Callable[[str], None]) -> CollectorRegistry:
    """Return what the other functions expose; see :class:`ReadingCollector`."""
    found = CollectorRegistry()
    found.register(ReadingCollector(read, tell))
    return found


def text(metrics: CollectorRegistry) -> bytes:
    """Return them in Prometheus's text format, UTF-8."""
    return generate_latest(metrics)


def write(metrics: CollectorRegistry, path: Path) -> None:
    """Put them into a file for node_exporter's textfile collector, at once and whole.

    Raises:
        SystemCallError: it cannot be written; what was there is as it was.
    """
    try:
        write_to_textfile(str(path), metrics)
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror}; make its directory, or choose another"
        raise SystemCallError(error.errno, reason) from error


def serve(metrics: CollectorRegistry, host: str, port: int) -> int:
    """Serve them over HTTP, in threads that end with the process, and return the port. 0 is any free one.

    Raises:
        SystemCallError: that address cannot be listened on.
    """
    try:
        server, _ = start_http_server(port, host, metrics)
    except OSError as error:
        reason = f"cannot listen on {host}, port {port}: {error.strerror}; choose another address with --listen"
        raise SystemCallError(error.errno, reason) from error
    return server.server_port


def _metric(family: Family, reading: Reading | None) -> Metric:
    samples = () if reading is None else family.read(reading)
    unit = next((unit for unit in _UNITS if family.name.endswith(f"_{unit}")), "")
    match family.kind:
        case "gauge":
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels, unit=unit)
            for labels, value in samples:
                gauge.add_metric(labels, value)
            return gauge
        case "counter":
            counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for labels, value in samples:
                counter.add_metric(labels, value)
            return counter
        case "info":
            info = InfoMetricFamily(family.name.removesuffix("_info"), family.help, labels=family.labels)
            for labels, _ in samples:
                info.add_metric(labels, {})
            return info
