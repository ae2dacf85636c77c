"""Workers share the one index: by the kernel's count of pages, and when another process changes it."""

import json
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

from apps.vectors.index import Index
from apps.vectors.memory import memory_of

from .support import App, many_texts

WORKERS = 4


def of_the_arena(pid: int) -> tuple[int, int]:
    """Bytes of the arena's memfd that a process has resident, and its share of them."""
    maps = re.split(r"^(?=[\da-f]+-[\da-f]+ )", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE)
    ours = [each for each in maps if "/memfd:persistmem:vectors" in each]
    rss, pss = (
        sum(int(size) << 10 for each in ours for size in re.findall(rf"^{field}: +(\d+) kB", each, re.MULTILINE))
        for field in ("Rss", "Pss")
    )
    return rss, pss


def ask(worker: "subprocess.Popen[str]", query: str) -> list[str]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(query + "\n")
    worker.stdin.flush()
    names: list[str] = json.loads(worker.stdout.readline())["names"]
    return names


def test_four_workers_have_the_matrix_once_between_them_and_see_it_change(app: App) -> None:
    app.build(many_texts(20_000))
    with Index.attach() as index:
        matrix = len(index) * index.geometry.row_size
    assert matrix > 40_000_000
    with ExitStack() as stack:
        workers = [stack.enter_context(app.start("-m", "apps.vectors.worker", "arena")) for _ in range(WORKERS)]
        for worker in workers:
            assert worker.stdout is not None
            assert "ready" in json.loads(worker.stdout.readline())
            assert len(ask(worker, "a boat, number 7")) == 3
        arena = [of_the_arena(worker.pid) for worker in workers]
        memory = [memory_of(worker.pid) for worker in workers]

        assert app("add", "selfie", "a photograph that one takes of oneself").status == 0
        assert [ask(worker, "a photograph of oneself")[0] for worker in workers] == ["selfie"] * WORKERS
    for (rss, pss), whole in zip(arena, memory, strict=True):
        assert rss >= matrix
        assert pss < 1.05 * rss / WORKERS
        assert whole.rss > rss
        assert whole.pss < whole.rss - 0.7 * matrix
    assert sum(pss for _, pss in arena) < 1.1 * max(rss for rss, _ in arena)
