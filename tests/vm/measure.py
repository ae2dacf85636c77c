"""What a kexec costs, measured in virtual machines: run as ``make bench-vm``. Emulated, so that only ratios count."""

import json
import statistics
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

from .folios_guest import SIZE
from .machine import REPORT, Job, boot
from .requirements import install_programs

FOLIOS = Job("tests.vm.folios_guest", ("7.2.13", "7.3.4"))
DARK = Job("tests.vm.dark_guest", ("7.2.13", "7.3.4"))


Marks = dict[tuple[int, str], float]
"""When the host last heard of something, by how many kexecs came before it."""


def main() -> None:
    install_programs()
    with tempfile.TemporaryDirectory(prefix="persistmem-vm-") as folder:
        show_folios(Path(folder))
        show_dark_time(Path(folder))


def show_folios(folder: Path) -> None:
    """Filling holes, preserving and retrieving, with small and with huge folios."""
    work = folder / "folios"
    work.mkdir()
    run = boot(FOLIOS, work)
    print(f"\n{SIZE >> 20} MiB from 7.2.13 to 7.3.4, ms per GiB: median [min..max]")
    for verb, stage, size in (("fill half", 0, SIZE // 2), ("preserve", 0, SIZE), ("retrieve", 1, SIZE)):
        medians = []
        for what, policy in (("4 KiB folios", "never"), ("huge folios", "advise")):
            times = [seconds * 1000 * (1 << 30) / size for seconds in run.said(stage, f"{verb} with {policy}")]
            medians.append(statistics.median(times))
            print(f"{verb:<10}{what:<14}{medians[-1]:9.1f} [{min(times):.1f}..{max(times):.1f}]")
        print(f"{verb:<10}ratio         {medians[0] / medians[1]:9.1f} x")


def show_dark_time(folder: Path) -> None:
    """From the last hit in the old kernel to the first in the new one."""
    work = folder / "dark"
    work.mkdir()
    marks: Marks = {}
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch, work / REPORT, marks, ended)
        run = boot(DARK, work)
        ended.set()
        watched.result()
    last = marks[0, "hit"]
    parts = [("kexec and boot, to the first program", "user space"), ("agent: start, retrieve, check", "agent")]
    print("\nfrom the last hit on 7.2.13 to the first on 7.3.4 (one run, times taken outside the machine)")
    before = last
    for what, mark in [*parts, ("application: start, attach, restore", "hit")]:
        print(f"{what:<40}{marks[1, mark] - before:8.2f} s")
        before = marks[1, mark]
    (told,) = run.said(1, "history")
    print(f"{'all of it':<40}{before - last:8.2f} s; of this the agent's retrieve and check {told['retrieve']:.3f} s")


def watch(report: Path, marks: Marks, ended: threading.Event) -> None:
    """Note when each line came last, until the machine has ended."""
    while not report.exists() and not ended.is_set():
        sleep(0.01)
    line = ""
    with report.open() as lines:
        while not ended.is_set():
            line += lines.readline()
            if not line.endswith("\n"):
                sleep(0.002)
                continue
            stage, what, _ = json.loads(line)
            if (stage, what) not in marks or stage == 0:
                marks[stage, what] = monotonic()
            line = ""


if __name__ == "__main__":
    main()
