"""What becomes of this machine's state if it kexecs into a given kernel. Looks, and changes nothing.

Knows what two kernels say of themselves; must not know arenas or agents: it protects machines that have none. "Seen"
is what was tried on Linux 7.2.13 and 7.3.4; "source" is what kernel/liveupdate/ in Linux says.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from persistmem.errors import Error, KernelImageError
from persistmem.liveupdate.kernel_image import Abi, KernelImage, abi_in, options_of, read_kernel_image

_IMAGES: Final = ("boot/vmlinuz-{}", "lib/modules/{}/vmlinuz", "boot/vmlinux-{}", "usr/lib/debug/boot/vmlinux-{}")
_CONFIG_BYTES_MAX: Final = 4 << 20
_WORD: Final = re.compile(r'(?:[^\s"]|"[^"]*"?)+', re.ASCII)  # lib/cmdline.c, next_arg: quotes keep spaces
_ON: Final = re.compile("[eyt1]|on", re.IGNORECASE)  # lib/kstrtox.c, kstrtobool: it looks no further
_OFF: Final = re.compile("[dnf0]|of", re.IGNORECASE)


class Verdict(enum.Enum):
    """What becomes of the state."""

    SURVIVES = "survives"
    """What is preserved is there in the next kernel."""
    LOST = "lost"
    """The machine comes up, without it."""
    PANIC = "panic"
    """The next kernel panics while it boots, whether anything was preserved or not."""
    UNKNOWN = "unknown"
    """Any of these."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, why, and what to do about it."""

    verdict: Verdict
    why: str
    advice: str


@dataclass(frozen=True, slots=True)
class RunningKernel:
    """The kernel that would be left."""

    release: str
    live: bool
    """Whether live update is switched on: then it hands something over at every kexec, even if it is empty."""
    abi: Abi | None
    """None if it cannot be found out."""
    why_unknown: str = ""

    @classmethod
    def read(cls, root: Path, image: Path | None = None) -> Self:
        """Look at the running kernel: in /proc, /dev, and for its own image where distributions put it.

        Args:
            root: what ``/`` is.
            image: where its image is, for machines that have it elsewhere.

        Raises:
            KernelImageError: ``image`` is none, or of another kernel.
            MissingLibraryError: ``image`` is compressed in a way that takes a library which is not installed.
        """
        release = (root / "proc/sys/kernel/osrelease").read_text("ascii").strip()
        kernel = cls(release, (root / "dev/liveupdate").exists(), None)
        if image is not None:
            found = read_kernel_image(image)
            if found.release != release:
                raise KernelImageError(f"kernel image {image}: expected the running {release}, found {found.release}")
            return replace(kernel, abi=found.abi)
        problems = []
        for path in (root / place.format(release) for place in _IMAGES):
            try:
                found = read_kernel_image(path)
            except Error as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    problems.append(str(error))
                continue
            if found.release == release:
                return replace(kernel, abi=found.abi)
            problems.append(f"{path} is another kernel, {found.release}")
        if (abi := _abi_in_debugfs(root)) is not None:
            return replace(kernel, abi=abi)
        why = "; ".join(problems) or f"there is no image of it in /{_IMAGES[0].format(release)}"
        return replace(kernel, why_unknown=f"{why}; name its image with --running")


def judge(running: RunningKernel, following: KernelImage, command_line: str) -> Judgement:
    """Say what becomes of the state if ``running`` kexecs into ``following`` with ``command_line``.

    >>> v5, v6 = Abi("kho-v4", "luo-v5", "memfd-v2"), Abi("kho-v4", "luo-v6", "memfd-v2")
    >>> running = RunningKernel("7.2.13", True, v5)
    >>> judge(running, KernelImage("7.3.4", v6, None, "zstd"), "kho=on liveupdate=on").verdict
    <Verdict.PANIC: 'panic'>
    """
    ours, theirs = running.abi, following.abi
    kho = _takes_handover(following.options, command_line)
    if not running.live:
        return _lost("live update is not switched on here (there is no /dev/liveupdate): nothing is handed over", "")
    if kho is False:
        return _lost(
            "kexec handover is off there: by kho=off, or because it is off by default and kho=on is not on its command"
            " line (seen)",
            "to let state survive, put kho=on and liveupdate=on on its command line",
        )
    if _is_silent(following):
        return _unknown("its configuration has live update (CONFIG_LIVEUPDATE), but the ABI that it reads is not in it")
    if theirs.kho is None:
        return _lost(
            "it has no kexec handover (CONFIG_KEXEC_HANDOVER)", "build it with live update to let state survive"
        )
    if ours is None or ours.kho is None or ours.luo is None:
        why = running.why_unknown or "it does not stand in its image"
        return _unknown(f"the live-update ABI of the running kernel cannot be found out: {why}")
    if theirs.kho != ours.kho:
        return _lost(f"it reads {theirs.kho}, and is handed {ours.kho}: it ignores that (source)", _BY_DISK)
    if theirs.luo is None:
        return _lost(
            "it has no live update (CONFIG_LIVEUPDATE): nobody asks for what is handed over (source)", _BY_DISK
        )
    if theirs.luo != ours.luo:
        return Judgement(
            Verdict.PANIC,
            f"it reads {theirs.luo}, and is handed {ours.luo}, whether anything was preserved or not: it panics while"
            " it boots (seen)",
            "put kho=off on its command line: then it boots, without the state ('persistmem reboot --kexec' does so,"
            " and takes arenas along on disk)",
        )
    if _switch(command_line, "liveupdate") is not True:
        return _lost(
            "liveupdate=on is not on its command line: it has no /dev/liveupdate (seen)",
            "put liveupdate=on on its command line",
        )
    if ours.memfd is None:
        return _unknown("how the running kernel hands over memfds cannot be found out; name its image with --running")
    if theirs.memfd != ours.memfd:
        return _lost(
            f"it reads {theirs.memfd or 'no memfds'}, and is handed {ours.memfd}: it cannot retrieve them (source)",
            _BY_DISK,
        )
    if kho is None:
        return _unknown("whether kexec handover is on there by default is not known; put kho=on on its command line")
    return Judgement(
        Verdict.SURVIVES,
        f"{following.release or 'it'} reads what {running.release} hands over: {', '.join(filter(None, ours))} (seen,"
        " between Linux 7.2.13 and 7.3.4)",
        "",
    )


def without_handover(command_line: str) -> str:
    """Return the command line with which a kernel ignores what it is handed, and so does not panic over it.

    >>> without_handover("root=/dev/vda kho=on liveupdate=on")
    'root=/dev/vda kho=on liveupdate=on kho=on kho=off'
    """
    own, of_init = _words(command_line)
    return " ".join([*own, *_ON_OFF, *of_init])


def reuse(command_line: str) -> str:
    """Return the command line for a next kernel that is to be started as this one was.

    What a boot loader put there is left out, and what :func:`without_handover` did is taken back.

    >>> reuse("BOOT_IMAGE=/vmlinuz-7.2.13 root=/dev/vda kho=on liveupdate=on kho=on kho=off")
    'root=/dev/vda kho=on liveupdate=on'
    """
    own, of_init = _words(command_line)
    if own[-len(_ON_OFF) :] == _ON_OFF:
        del own[-len(_ON_OFF) :]
    return " ".join([word for word in own if not word.startswith("BOOT_IMAGE=")] + of_init)


def read_following(path: Path) -> KernelImage:
    """Read the image of a kernel, and the configuration beside it if there is none in it.

    Raises:
        KernelImageError, MissingLibraryError: see :func:`read_kernel_image`.
    """
    image = read_kernel_image(path)
    if image.options is not None or "/" in image.release:
        return image
    beside = path.resolve().with_name(f"config-{image.release}")  # /vmlinuz is a link, on some distributions
    try:
        with beside.open(encoding="utf-8", errors="replace") as file:
            return replace(image, options=options_of(file.read(_CONFIG_BYTES_MAX)))
    except OSError:
        return image  # there is none, or for root alone


_ON_OFF: Final = ["kho=on", "kho=off"]  # the last one counts; nobody else writes the pair, so reuse() knows its own
_BY_DISK: Final = "go by the disk: 'persistmem reboot --kexec' does, and 'persistmem save' for other ways to reboot"


def _lost(why: str, advice: str) -> Judgement:
    return Judgement(Verdict.LOST, why, advice)


def _unknown(why: str) -> Judgement:
    return Judgement(Verdict.UNKNOWN, why, "with kho=off on its command line it is sure to boot, without the state")


def _is_silent(image: KernelImage) -> bool:
    """Whether it does not name an ABI that it has, by its configuration."""
    return None in (image.abi.kho, image.abi.luo) and (image.options or {}).get("LIVEUPDATE") == "y"


def _takes_handover(options: Mapping[str, str] | None, command_line: str) -> bool | None:
    given = _switch(command_line, "kho")
    if given is not None or options is None:
        return given
    return options.get("KEXEC_HANDOVER_ENABLE_DEFAULT") == "y"


def _switch(command_line: str, name: str) -> bool | None:
    """What the last word of that name says; None if none says anything."""
    found = None
    for word in _words(command_line)[0]:
        key, _, value = word.replace('"', "").partition("=")
        if key == name and _ON.match(value):
            found = True
        elif key == name and _OFF.match(value):
            found = False
    return found


def _words(command_line: str) -> tuple[list[str], list[str]]:
    """What the kernel reads, and what it leaves to init: the rest, from "--" on."""
    words = _WORD.findall(command_line)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end:]


def _abi_in_debugfs(root: Path) -> Abi | None:
    """What this kernel would hand over, as root can see it; it says nothing of memfds."""
    found = b""
    for name in ("fdt", "sub_fdts/LUO"):
        try:
            with (root / "sys/kernel/debug/kho/out" / name).open("rb") as file:
                found += file.read(1 << 20) + b"\0"
        except OSError:
            return None
    return abi_in(found)
