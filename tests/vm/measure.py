"""What a kexec costs, measured in virtual machines: run as ``make bench-vm``. Emulated, so that only ratios count."""

import statistics
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

from .folios_guest import ROUNDS, SIZE
from .machine import REPORT, Job, boot
from .requirements import install_programs

FOLIOS = Job("tests.vm.folios_guest", ("7.2.13", "7.3.4"))
DARK = Job("tests.vm.dark_guest", ("7.2.13", "7.3.4"))


def main() -> None:
    install_programs()
    with tempfile.TemporaryDirectory(prefix="persistmem-vm-") as folder:
        show_folios(Path(folder))
        show_dark_time(Path(folder))


def show_folios(folder: Path) -> None:
    """Preserve and retrieve, with small and with huge folios."""
    work = folder / "folios"
    work.mkdir()
    run = boot(FOLIOS, work)
    print(f"\n{SIZE >> 20} MiB from 7.2.13 to 7.3.4, ms per GiB: median [min..max] of {ROUNDS}")
    for stage, verb in enumerate(("preserve", "retrieve")):
        medians = []
        for what, policy in (("4 KiB folios", "never"), ("huge folios", "advise")):
            times = [seconds * 1000 * (1 << 30) / SIZE for seconds in run.said(stage, f"{verb} with {policy}")]
            medians.append(statistics.median(times))
            print(f"{verb:<10}{what:<14}{medians[-1]:9.1f} [{min(times):.1f}..{max(times):.1f}]")
        print(f"{verb:<10}ratio         {medians[0] / medians[1]:9.1f} x")


def show_dark_time(folder: Path) -> None:
    """From the last hit in the old kernel to the first in the new one."""
    work = folder / "dark"
    work.mkdir()
    marks: dict[tuple[str, str], float] = {}
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch, work / REPORT, marks, ended)
        run = boot(DARK, work)
        ended.set()
        watched.result()
    last = marks["0", "hit"]
    parts = [("kexec and boot, to the first program", "user space"), ("agent: start, retrieve, check", "agent")]
    print("\nfrom the last hit on 7.2.13 to the first on 7.3.4 (one run, times taken outside the machine)")
    before = last
    for what, mark in [*parts, ("application: start, attach, restore", "hit")]:
        print(f"{what:<40}{marks['1', mark] - before:8.2f} s")
        before = marks["1", mark]
    (told,) = run.said(1, "history")
    print(f"{'all of it':<40}{before - last:8.2f} s; of this the agent's retrieve and check {told['retrieve']:.3f} s")


def watch(report: Path, marks: dict[tuple[str, str], float], ended: threading.Event) -> None:
    """Note when each line came last, until the machine has ended."""
    while not report.exists() and not ended.is_set():
        sleep(0.01)
    with report.open() as lines:
        while not ended.is_set():
            line = lines.readline()
            if line.endswith("\n"):
                stage, what = line.strip("[]\n").split(", ")[:2]
                key = stage, what.strip('"')
                if key not in marks or stage == "0":
                    marks[key] = monotonic()
            else:
                sleep(0.002)


if __name__ == "__main__":
    main()
