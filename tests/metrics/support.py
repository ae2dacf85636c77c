"""What the tests of metrics talk to and read with: the endpoint, Prometheus itself, its parser, a shop with a cache."""

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

import persistmem
from persistmem.metrics.families import FAMILIES
from tests.cli.support import COMMAND, PATIENCE, CommandLine

ROOT = Path(__file__).resolve().parents[2]

Labels = frozenset[tuple[str, str]]


def make_shop() -> None:
    """Two arenas: a cache with 3 hits, 2 misses, 4 sets and 1 delete; and 2 snapshots, of 2 generations and 1."""
    with persistmem.Cache("shop", "1MiB") as cache:
        for number in range(4):
            cache[f"key {number}"] = number
        del cache["key 3"]
        for number in range(5):
            cache.get(f"key {number}")
        cache.arena.close()
    with persistmem.attach("carts", "1MiB") as arena:
        for state in ([1], [2], [3]):
            arena.snapshot("open", state)
        arena.snapshot("closed", bytes(300_000))


def flip(fd: int, offset: int) -> None:
    """Flip a bit of an arena behind everybody's back."""
    byte = os.pread(fd, 1, offset)[0]
    os.pwrite(fd, bytes([byte ^ 1]), offset)


def damage(arena: str, offset: int) -> None:
    """The same by name, as long as it can be attached."""
    with persistmem.attach(arena) as opened:
        fd = opened.descriptor()
    flip(fd, offset)
    os.close(fd)


def needs(program: str) -> str:
    """The program's path; skips if Debian's ``prometheus`` is not installed."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: apt-get install prometheus")
    return found


class Metrics:
    """Samples as a client of Prometheus reads them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)
        self._samples: dict[str, dict[Labels, float]] = {}
        for family in self.families:
            for sample in family.samples:
                series = self._samples.setdefault(sample.name, {})
                labels = frozenset(sample.labels.items())
                assert labels not in series, f"{sample.name} has {sample.labels} twice"
                series[labels] = sample.value

    @classmethod
    def of(cls, text: bytes) -> Self:
        return cls(text_string_to_metric_families(text.decode()))

    def __getitem__(self, name: str) -> float:
        """The one sample of a metric without labels."""
        ((labels, value),) = self._samples[name].items()
        assert not labels
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._samples

    def names(self) -> set[str]:
        return set(self._samples)

    def value(self, name: str, **labels: str) -> float | None:
        """The sample of exactly these labels."""
        return self._samples.get(name, {}).get(frozenset(labels.items()))

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for labels in self._samples.get(name, {})]


def metrics(cli: CommandLine) -> Metrics:
    """What the command prints."""
    answer = cli("metrics")
    assert (answer.status, answer.err) == (0, "")
    return Metrics.of(answer.out)


class Lines:
    """Lines that a process writes, waited for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self._pipe = process.stderr
        self.seen: list[str] = []

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line of them all that is like that: who writes from several threads does so in any order."""
        for seen in self.seen:
            if (match := re.search(pattern, seen)) is not None:
                return match
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            while selector.select(PATIENCE) and (line := self._pipe.readline()):
                self.seen.append(line.decode())
                if (match := re.search(pattern, self.seen[-1])) is not None:
                    return match
        raise AssertionError(f"no {pattern!r} in {''.join(self.seen)}")


class Endpoint:
    """``persistmem metrics --listen``, as a process."""

    def __init__(self, cli: CommandLine, address: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "metrics", "--listen", address],
            stderr=subprocess.PIPE,
            cwd=cli.directory,
            env=cli.environment(),
            bufsize=0,
        )
        self.log = Lines(self.process)
        self.url = self.log.wait_for(r"serves (http://\S+)")[1]

    def get(self, query: str = "", *, method: str = "GET", **headers: str) -> tuple[dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + query, headers=named, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return dict(answer.headers), answer.read()

    def metrics(self) -> Metrics:
        return Metrics.of(self.get()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)


StartEndpoint = Callable[..., Endpoint]


class Prometheus:
    """A real one, that scrapes a target four times a second."""

    def __init__(self, directory: Path, target: str) -> None:
        config = directory / "prometheus.yml"
        scrapes = [{"job_name": "persistmem", "static_configs": [{"targets": [target]}]}]
        times = {"scrape_interval": "250ms", "scrape_timeout": "250ms"}
        config.write_text(json.dumps({"global": times, "scrape_configs": scrapes}))  # which is YAML, too
        self._process = subprocess.Popen(
            [
                needs("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        lines = Lines(self._process)
        address = lines.wait_for(r"Listening on. address=(\S+)")[1]
        self.url = f"http://{address}/api/v1/"
        lines.wait_for("ready to receive web requests")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an instant query returns."""
        arguments = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}query?{arguments}", timeout=PATIENCE) as answer:
            found = json.load(answer)["data"]["result"]
        assert isinstance(found, list)
        return found

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """What it returns as soon as it returns anything."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := self.query(expression):
                return found
            time.sleep(0.05)
        raise AssertionError(f"Prometheus has nothing for {expression}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()


def check_expressions(expressions: Iterable[str]) -> None:
    """Fail if an expression of PromQL names a metric that there is not, or a label that it has not."""
    labels = {family.name: {*family.labels, "job", "instance"} for family in FAMILIES}
    for expression in expressions:
        names = set(re.findall(r"\bpersistmem_\w+", expression))
        assert names <= labels.keys(), f"{expression} names {names - labels.keys()}"
        for name, matchers in re.findall(r"\b(persistmem_\w+){([^}]*)}", expression):
            used = set(re.findall(r'(\w+)=~?"', matchers))
            assert used <= labels[name], f"{expression}: {name} has no {used - labels[name]}"
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            used = {label.strip() for label in group.split(",")}
            for name in names:
                assert used <= labels[name], f"{expression}: {name} has no {used - labels[name]}"


def check_rules(directory: Path, rules: str) -> None:
    """Fail if Prometheus does not take this rules file."""
    path = directory / "rules.yml"
    path.write_text(rules)
    command = [needs("promtool"), "check", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
