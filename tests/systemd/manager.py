"""A real service manager for tests: ``systemd --user``, wherever root may make namespaces.

It has a directory, mounts and cgroups of its own, and nothing of them is left. Must not know arenas.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.waiting import readable

PATIENCE = 30.0

# It lasts as long as its standard input is open, so it ends with whoever started it, however that one ends.
_OUTSIDE = r"""
set -eu
own=$1/persistmem-test-$$
mkdir "$own"
end() {
    echo 1 > "$own/cgroup.kill"
    wait
    while grep -q 'populated 1' "$own/cgroup.events"; do sleep 0.01; done
    find "$own" -depth -type d -exec rmdir {} +
}
trap end EXIT
(
    echo 0 > "$own/cgroup.procs"
    exec unshare --mount --cgroup sh -c "$2" sh "$3"
) &
exec > /dev/null
cat
"""
# systemd refuses to be a user's manager where there is no /run/systemd/system. A service's cgroup is named as on a
# machine that booted with systemd, because that is where it looks up who it is. Its log goes to the console.
_INSIDE = r"""
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
own=/sys/fs/cgroup/user.slice/user-0.slice/user@0.service
mkdir -p "$own"
echo 0 > "$own/cgroup.procs"
test ! -e /dev/console || mount --bind "$1" /dev/console
echo isolated
exec 3>&1 > /dev/null 2>&1
"$SYSTEMD" --user --unit=basic.target --log-target=console 3>&-
echo "systemd ended: $?" >&3
"""


class CannotRunError(Exception):
    """This machine does not let us have a service manager; the text says why."""


class ServiceManager:
    """A user's service manager that knows only the services it is given.

    ``run_service`` gives it one; what services print to ``output`` are lines of JSON for ``line``.
    """

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="pm-systemd-"))
        self.output = self._directory / "output"
        self.errors = self._directory / "errors"
        self._units = self._directory / "units"
        self._log = self._directory / "log"
        self._process: subprocess.Popen[str] | None = None
        self._read = b""
        self._fifo = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and return when it takes orders.

        Raises:
            CannotRunError: it cannot be here.
        """
        try:
            self._start()
        except BaseException:
            self._end()
            raise

    def _start(self) -> None:
        systemd, cgroup = _systemd(), _own_cgroup()
        for name in ("units", "none", "runtime", "home"):
            (self._directory / name).mkdir(mode=0o700)
        for target in ("basic", "shutdown"):
            (self._units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        os.mkfifo(self.output)
        self._fifo = os.open(self.output, os.O_RDWR | os.O_NONBLOCK)
        self._log.touch()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(self._directory / "ready"))
            self._process = subprocess.Popen(
                ["sh", "-c", _OUTSIDE, "sh", str(cgroup), _INSIDE, str(self._log)],
                env=self._environment() | {
                    "SYSTEMD": str(systemd),
                    "NOTIFY_SOCKET": str(self._directory / "ready"),
                    "SYSTEMD_UNIT_PATH": str(self._units),
                    "SYSTEMD_GENERATOR_PATH": str(self._directory / "none"),
                    "SYSTEMD_ENVIRONMENT_GENERATOR_PATH": str(self._directory / "none"),
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                },
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            self._wait_until_ready(self._process, ready)

    def _wait_until_ready(self, process: "subprocess.Popen[str]", ready: socket.socket) -> None:
        assert process.stdout is not None
        said: list[str] = []
        while True:
            heard = readable(ready.fileno(), process.stdout.fileno(), seconds=PATIENCE)
            assert heard, f"systemd does not start: {said}, {self._log.read_text()}"
            if ready.fileno() in heard:
                if b"READY=1" in ready.recv(4096).split(b"\n"):
                    return
            elif line := process.stdout.readline():
                said.append(line.strip())
            else:
                if "isolated" not in said:
                    raise CannotRunError(" ".join(process.communicate(timeout=PATIENCE)[1].split()))
                raise AssertionError(f"{said}: {self._log.read_text()}")

    def stop(self) -> None:
        """End it and all its services, and remove what it had."""
        error = self._end()
        assert not error, error

    def _end(self) -> str:
        error = ""
        if self._process is not None:
            _, error = self._process.communicate(timeout=PATIENCE)
            self._process = None
        if self._fifo >= 0:
            os.close(self._fifo)
            self._fifo = -1
        shutil.rmtree(self._directory)
        return error

    def run_service(self, unit: str, name: str = "shop.service") -> None:
        """Make a unit of this text, whose output goes where it is read, and start it."""
        text = f"{unit}\nStandardOutput=append:{self.output}\nStandardError=append:{self.errors}\n"
        (self._units / name).write_text(text)
        self.systemctl("daemon-reload")
        self.systemctl("start", name)

    def run_program(self, program: str, settings: str, name: str = "shop.service") -> None:
        """Run lines of Python as a service with these lines in its ``[Service]`` section."""
        path = (self._directory / name).with_suffix(".py")
        path.write_text(program)
        self.run_service(f"[Service]\nExecStart={sys.executable} {path}\n{settings}", name)

    def systemctl(self, *arguments: str) -> str:
        """What ``systemctl --user`` says; AssertionError if it fails."""
        done = subprocess.run(
            ["systemctl", "--user", "--no-pager", *arguments],
            env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stderr} {self._log.read_text()}"
        return done.stdout.strip()

    def line(self) -> Any:
        """The next line that a service prints, in good time."""
        while b"\n" not in self._read:
            assert readable(self._fifo, seconds=PATIENCE), f"no service says anything: {self._said()}"
            self._read += os.read(self._fifo, 4096)
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    @property
    def version(self) -> int:
        """The manager's version, such as 252."""
        said = self.systemctl("show", "--property=Version", "--value")
        return int(said.removeprefix("systemd ").removeprefix("v")[:3])

    def _said(self) -> str:
        errors = self.errors.read_text() if self.errors.exists() else ""
        return errors + self._log.read_text()

    def _environment(self) -> dict[str, str]:
        directory = str(self._directory)
        return {"PATH": os.environ["PATH"], "HOME": f"{directory}/home", "XDG_RUNTIME_DIR": f"{directory}/runtime"}


def _systemd() -> Path:
    if os.geteuid() != 0:
        raise CannotRunError("a service manager of one's own needs namespaces and a cgroup: run the tests as root")
    for program, package in (("unshare", "util-linux"), ("mount", "mount"), ("systemctl", "systemd")):
        if shutil.which(program) is None:
            raise CannotRunError(f"there is no {program}: install {package}")
    found = shutil.which("systemd", path="/usr/lib/systemd:/lib/systemd")
    if found is None:
        raise CannotRunError("there is no service manager: install systemd")
    return Path(found)


def _own_cgroup() -> Path:
    """Where it is mounted already: to mount cgroup2 again, outside a cgroup namespace, changes it for everybody."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounted = [where for _, where, kind, *_ in mounts if kind == "cgroup2"]
    own = [line.removeprefix("0::") for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"]
    if not mounted or not own:
        raise CannotRunError("no cgroup2 hierarchy is mounted: mount it, as systemd and container engines do")
    return Path(mounted[0] + own[0])
