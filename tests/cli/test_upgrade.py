"""The way to the next kernel on the command line: prepare, abort, save and reboot.

What is saved comes back, once; and whatever is refused says why in one line, and has changed nothing.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from persistmem.agent.protocol import Status
from persistmem.attachment import agent_status, attach, drop_arena, list_arenas, list_handovers, start_agent, stop_agent
from persistmem.cli import main
from persistmem.errors import NotFoundError, RefusedError
from persistmem.upgrade import Observer
from persistmem.upgrade import save as save_arenas

from .support import COMMAND, PATIENCE, Answer, CommandLine

ONE_LINE = re.compile(r"persistmem: error: .+\n")

Run = Callable[..., Answer]
RunAgent = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def run(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs ``persistmem`` in this process, which takes a tenth of the time, in the directory of the command line."""
    monkeypatch.chdir(cli.directory)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["persistmem", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfdbinary.readouterr()
        status = ended.value.code or 0
        assert isinstance(status, int)
        return Answer(status, out, err.decode())

    return run


@pytest.fixture
def run_agent(cli: CommandLine) -> RunAgent:
    """Runs agents in the foreground, for as long as a ``with``; then what they keep in memory is discarded."""

    @contextmanager
    def run(*arguments: str) -> Iterator[None]:
        agent = subprocess.Popen(
            [*COMMAND, "agent", "run", *arguments],
            cwd=cli.directory,
            env=cli.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        with agent:
            assert agent.stderr
            assert any("serves" in line for line in agent.stderr), "the agent did not start"
            yield
            stop_agent(discard=True)
            agent.communicate(timeout=PATIENCE)

    return run


@contextmanager
def application(cli: CommandLine, code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process with the arena ``shop``; it ends with the ``with``."""
    code = f"import sys, threading, persistmem\narena = persistmem.attach('shop', size='1MiB')\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=cli.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


def says(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout
    assert process.stdout.readline() == f"{line}\n"


def keep(name: str, value: object, size: str = "1MiB") -> None:
    with attach(name, size=size) as arena:
        arena.snapshot("default", value)


def kept(name: str) -> Any:
    with attach(name) as arena:
        return arena.restore("default")


def running() -> Status:
    status = agent_status()
    assert status is not None
    return status


def failed(answer: Answer) -> str:
    """What a command said that failed: one line."""
    assert (answer.status, answer.out) == (1, b"")
    assert ONE_LINE.fullmatch(answer.err)
    return answer.err


def undocumented(run: Run, command: str, keys: set[str]) -> list[str]:
    help_ = run(command, "--help").text
    return [key for key in keys if not re.search(rf"\b{key}\b", help_)]


class TestSave:
    """What is saved comes back, as it was saved, once."""

    def test_it_comes_back_once_from_a_directory_that_was_named(self, cli: CommandLine, run_agent: RunAgent) -> None:
        keep("shop", "first")
        cli("save", "--to", "backup")
        keep("shop", "second")
        assert cli("save", "--to", "backup").text == "saved      1 arena, 1 MiB on disk\n"
        assert len(list((cli.directory / "backup").iterdir())) == 2
        stop_agent(discard=True)
        with run_agent("--saved", "backup"):
            assert kept("shop") == "second"
            assert cli("verify", "shop").status == 0
        with run_agent("--saved", "backup"), pytest.raises(NotFoundError):
            kept("shop")

    def test_a_kernel_that_memory_does_not_reach_has_it_from_the_disk(self, run: Run) -> None:
        keep("shop", 1)
        keep("blog", 2)
        assert run("save").status == 0
        rebooted = run("reboot", "--simulate", "--incompatible", "--release", "9.9.9")
        assert rebooted.status == 0
        assert "2 arenas, 2 MiB; 2 of them by the disk" in rebooted.text
        assert (kept("shop"), kept("blog")) == (1, 2)
        (told,) = list_handovers()
        assert (told.kernel_to, told.arenas, told.saved, told.lost_count) == ("9.9.9", 2, 2, 0)
        # Once: the next one has it neither from memory nor from the disk.
        assert run("reboot", "--simulate", "--incompatible").status == 1
        assert list_arenas() == []

    def test_what_came_through_memory_is_newer(self, run: Run, state_directory: Path) -> None:
        keep("shop", "saved")
        run("save")
        keep("shop", "newer")
        assert "by the disk" not in run("reboot", "--simulate").text
        assert kept("shop") == "newer"
        assert not list((state_directory / "saved").glob("*.json"))

    def test_what_is_removed_does_not_come_back(self, run: Run, state_directory: Path) -> None:
        keep("shop", "saved")
        run("save")
        drop_arena("shop")
        assert list((state_directory / "saved").iterdir()) == []

    def test_scripts_are_told_what_was_saved(self, run: Run, cli: CommandLine) -> None:
        keep("shop", b"x", "64MiB")
        (told,) = run("save", "--to", "backup", "--json").json
        assert told.keys() == {"arena", "uid", "uuid", "size", "written", "damage"}
        assert undocumented(run, "save", set(told)) == []
        assert (told["arena"], told["uid"], told["size"], told["damage"]) == ("shop", os.geteuid(), 64 << 20, "")
        (content,) = (cli.directory / "backup").glob("*.arena")
        assert content.name.startswith(f"{told['uuid']}.")
        assert content.stat().st_size == 64 << 20
        assert 0 < told["written"] < 8 << 20
        assert content.stat().st_blocks * 512 < 32 << 20

    def test_with_nothing_to_save_it_says_so(self, run: Run) -> None:
        start_agent()
        assert run("save").text == "saved      0 arenas, 0 B on disk\n"
        assert run("save", "--json").json == []

    def test_what_is_damaged_is_saved_as_it_is_and_named(self, run: Run, cli: CommandLine) -> None:
        keep("shop", b"x" * 100_000)
        keep("blog", b"y")
        with attach("shop") as arena:
            piece = next(piece for piece in arena.pieces() if piece.length >= 100_000 and piece.kind != "free")
        cli.damage("shop", piece.offset + 5000)
        answer = run("save", "--to", "backup")
        assert (answer.status, answer.text.split(",")[0]) == (0, "saved      2 arenas")
        assert re.fullmatch(r"persistmem: damaged: arena shop, saved as it is: .*default.*\n", answer.err)
        told = run("save", "--to", "backup", "--json").json
        assert [(arena["arena"], bool(arena["damage"])) for arena in told] == [("blog", False), ("shop", True)]

    def test_all_arenas_of_many_are_saved(self, cli: CommandLine) -> None:
        names = sorted(f"arena {number}" for number in range(66))
        for name in names:
            attach(name, size="64KiB").close()

        class Told(Observer):
            total = done = 0

            def saving(self, total: int) -> None:
                self.total = total

            def progress(self, count: int) -> None:
                self.done += count

        told = Told()
        assert [each.saved.record.name for each in save_arenas(cli.directory / "backup", told)] == names
        assert told.total == told.done == 66 * 65536

    def test_whoever_is_writing_finishes_first(self, cli: CommandLine) -> None:
        code = (
            "with persistmem.arena.freeze(arena._memory.fd, 1):\n    print('writing', flush=True)\n"
            "    sys.stdin.readline()\nsys.stdin.readline()"
        )
        with application(cli, code) as writer:
            says(writer, "writing")
            saving = subprocess.Popen(
                [*COMMAND, "save", "--to", "backup"], cwd=cli.directory, env=cli.environment(), stdout=subprocess.PIPE
            )
            with saving:
                with pytest.raises(subprocess.TimeoutExpired):
                    saving.wait(0.8)
                assert not (cli.directory / "backup").exists()
                assert writer.stdin
                print(file=writer.stdin, flush=True)
                assert saving.wait(PATIENCE) == 0
        assert len(list((cli.directory / "backup").iterdir())) == 2

    def test_a_directory_that_others_can_reach_or_none_is_refused_with_what_to_do(
        self, run: Run, cli: CommandLine
    ) -> None:
        keep("shop", "x")
        (cli.directory / "backup").mkdir()
        (cli.directory / "backup").chmod(0o755)
        assert "chmod" in failed(run("save", "--to", "backup"))
        assert list((cli.directory / "backup").iterdir()) == []
        file = cli.file("file", "precious")
        assert "expected a directory" in failed(run("save", "--to", "file"))
        assert "Not a directory" in failed(run("save", "--to", "file/inside"))
        assert file.read_text() == "precious"

    def test_an_agent_does_not_start_with_a_directory_that_others_can_enter(self, cli: CommandLine) -> None:
        (cli.directory / "backup").mkdir()
        (cli.directory / "backup").chmod(0o755)
        answer = cli("agent", "run", "--saved", "backup")
        assert answer.status == 1
        assert re.fullmatch(r"persistmem: error: .*chmod.*", answer.err.splitlines()[-1])

    def test_what_the_disk_changed_is_not_taken_in_and_stays_where_it_is(
        self, run: Run, cli: CommandLine, run_agent: RunAgent
    ) -> None:
        keep("shop", "x")
        keep("blog", "y")
        told = {arena["arena"]: arena["uuid"] for arena in run("save", "--to", "backup", "--json").json}
        stop_agent(discard=True)
        (content,) = (cli.directory / "backup").glob(f"{told['shop']}.*.arena")
        with content.open("r+b") as file:
            file.write(b"\xff")
        with run_agent("--saved", "backup"):
            assert [arena.name for arena in list_arenas()] == ["blog"]
            assert (cli.directory / "backup" / f"{told['shop']}.json").exists()
            assert content.exists()


class TestPrepare:
    """What is prepared stays so until it is aborted."""

    def test_it_lasts_until_it_is_aborted(self, run: Run) -> None:
        keep("shop", "x")
        answer = run("prepare")
        assert answer.status == 0
        assert re.fullmatch(r"told       0 applications, waited .*\npreserved  1 arena, 1 MiB, in .*\n", answer.text)
        assert running().phase == "prepared"
        assert "abort" in failed(run("rm", "shop"))
        with pytest.raises(RefusedError, match="abort"):
            keep("blog", "y")
        keep("shop", "still written")
        assert kept("shop") == "still written"
        assert run("abort").err == "persistmem: nothing is prepared any more\n"
        assert running().phase == "serving"
        again = run("abort")
        assert (again.status, again.err) == (0, "persistmem: nothing was prepared\n")
        assert run("rm", "shop").status == 0

    def test_it_outlives_the_command(self, cli: CommandLine) -> None:
        keep("shop", "x")
        assert cli("prepare").status == 0
        assert running().phase == "prepared"
        assert cli("abort").status == 0
        assert running().phase == "serving"

    def test_scripts_are_told_how_it_went(self, run: Run) -> None:
        keep("shop", "x")
        told = run("prepare", "--json").json
        run("abort")
        assert told.keys() == {"arenas", "size", "applications", "unready", "waited", "preserve"}
        assert undocumented(run, "prepare", set(told)) == []
        assert (told["arenas"], told["size"], told["applications"], told["unready"]) == (1, 1 << 20, 0, 0)

    def test_applications_that_are_not_ready_in_time_are_counted(self, run: Run, cli: CommandLine) -> None:
        code = "persistmem.before_kexec(threading.Event().wait)\nprint('watching', flush=True)\nsys.stdin.readline()"
        with application(cli, code) as watching:
            says(watching, "watching")
            answer = run("prepare", "--deadline", "0.1")
            run("abort")
        assert answer.status == 0
        assert answer.text.startswith("told       1 application, waited ")
        assert "1 of 1 application did not take their last snapshots in time" in answer.err

    def test_what_does_not_fit_into_memory_is_refused_and_nothing_has_changed(self, run: Run) -> None:
        attach("vast", size="1TiB").close()
        assert "nothing has changed" in failed(run("prepare"))
        assert running().phase == "serving"

    def test_an_interrupt_while_applications_get_ready_leaves_nothing_prepared(self, cli: CommandLine) -> None:
        code = (
            "def told():\n    print('told', flush=True)\n    threading.Event().wait()\n"
            "persistmem.before_kexec(told)\nprint('watching', flush=True)\nsys.stdin.readline()"
        )
        with application(cli, code) as watching:
            says(watching, "watching")
            command = [*COMMAND, "prepare", "--deadline", "3600"]
            with subprocess.Popen(command, env=cli.environment(), stderr=subprocess.PIPE) as preparing:
                says(watching, "told")
                preparing.send_signal(signal.SIGINT)
                assert preparing.wait(PATIENCE) == 130
            assert any(running().phase == "serving" for _ in range(1000))


@pytest.mark.parametrize("command", [["prepare"], ["abort"], ["save"], ["save", "--to", "backup"]])
def test_where_no_agent_runs_there_is_nothing_to_carry_and_none_is_started(
    run: Run, cli: CommandLine, command: list[str]
) -> None:
    assert "no agent runs" in failed(run(*command))
    assert agent_status() is None
    assert not (cli.directory / "backup").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["save", "backup"], "unexpected extra argument"),
        (["save", "--to"], "requires an argument"),
        (["abort", "now"], "unexpected extra argument"),
        (["prepare", "--deadline", "-1"], "--deadline"),
        (["prepare", "--deadline", "3601"], "--deadline"),
        (["prepare", "--deadline", "nan"], "--deadline"),
        (["prepare", "--deadline", "soon"], "--deadline"),
        (["reboot"], "one of --simulate and --kexec"),
        (["reboot", "--simulate", "--kexec", "vmlinuz"], "one of --simulate and --kexec"),
        (["reboot", "--kexec", "vmlinuz"], "one of --reuse-cmdline and --command-line"),
        (["reboot", "--kexec", "vmlinuz", "--reuse-cmdline", "--command-line", "ro"], "one of --reuse-cmdline"),
        (["reboot", "--kexec", "vmlinuz", "--reuse-cmdline", "--release", "7.3"], "--release is for --simulate"),
        (["reboot", "--kexec", "vmlinuz", "--reuse-cmdline", "--incompatible"], "--incompatible is for --simulate"),
        (["reboot", "--simulate", "--initrd", "initrd"], "--initrd is for --kexec"),
        (["reboot", "--simulate", "--reuse-cmdline"], "--reuse-cmdline is for --kexec"),
        (["reboot", "--simulate", "--command-line", "ro"], "--command-line is for --kexec"),
        (["reboot", "--simulate", "--running", "vmlinuz"], "--running is for --kexec"),
        (["reboot", "--simulate", "--memory-only"], "--memory-only is for --kexec"),
    ],
)
def test_wrong_usage_is_told_from_failure_and_starts_nothing(run: Run, arguments: list[str], why: str) -> None:
    answer = run(*arguments)
    assert (answer.status, answer.out) == (2, b"")
    assert why in answer.err.lower()
    assert agent_status() is None


class TestKexec:
    """A kernel that cannot be is refused before anything is done for it."""

    @pytest.fixture(autouse=True)
    def unchanged(self, run: Run) -> Iterator[None]:
        """Every command here leaves arenas, agent and disk as they were."""
        keep("shop", "kept")
        before = running()
        yield
        assert running() == before
        assert before.phase == "serving"
        assert kept("shop") == "kept"
        keep("afterwards", "made")
        assert not Path(before.saved).exists()

    def test_a_file_that_is_no_kernel(self, run: Run, cli: CommandLine) -> None:
        for content, why in (
            (b"", "expected a Linux kernel"),
            (b"root:x:0:0:root:/root:/bin/sh\n", "expected a Linux kernel"),
            (b"\x7fELF" + bytes(10_000), "expected a Linux kernel"),
            (b"\x1f\x8b\x08garbage", "cannot be unpacked"),
            (bytes(0x202) + b"HdrS" + bytes(100), "boot"),
        ):
            cli.file("vmlinuz", content)
            said = failed(run("reboot", "--kexec", "vmlinuz", "--reuse-cmdline"))
            assert said.startswith("persistmem: error: kernel image vmlinuz: ")
            assert why in said

    def test_what_is_no_file(self, run: Run) -> None:
        for path, why in (("missing", "No such file"), (".", "directory")):
            assert why in failed(run("reboot", "--kexec", path, "--command-line", "ro"))

    def test_a_kernel_that_memory_does_not_survive_if_it_must(self, run: Run, cli: CommandLine) -> None:
        # It says that it is a kernel, with an ABI that no other one has; it is never loaded, and it could not be.
        cli.file("vmlinuz", b"\x7fELF" + bytes(100) + b"Linux version 99.9.9 (x)\0kho-v9999\0luo-v9999\0")
        said = failed(run("reboot", "--kexec", "vmlinuz", "--command-line", "ro", "--memory-only"))
        assert said.startswith("persistmem: error: 99.9.9: ")
        assert said.endswith("; without --memory-only arenas go by the disk\n")
