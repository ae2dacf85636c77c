"""A root file system on a disk, for a kernel that cannot mount the host's: this interpreter and tree, what they use."""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from .requirements import CHECKOUT

REQUIREMENTS = ("persistmem", "zstandard", "lz4")
_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "ensurepip",
    "config-*",
    "site-packages",
    "dist-packages",
    "*.a",
)
_SLACK = 64 << 20


def make_root_image(image: Path, staging: Path, files: Iterable[Path]) -> None:
    """Write an ext4 file system to ``image``, with ``files`` beside the rest; ``staging`` is an empty directory."""
    for directory in ("proc", "sys", "dev", "run", "tmp", "var/lib", "etc"):
        (staging / directory).mkdir(parents=True)
    for library in {Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platstdlib"))}:
        shutil.copytree(library, staging / library.relative_to("/"), ignore=_LEFT_OUT, dirs_exist_ok=True)
    for programs in {Path(sys.executable).parent, Path(sys.base_prefix) / "bin"}:
        for program in programs.glob("python*"):
            _copy(program, staging)
    _copy(Path(sys.prefix) / "pyvenv.cfg", staging)
    for part in ("persistmem", "tests"):
        shutil.copytree(CHECKOUT / part, staging / (CHECKOUT / part).relative_to("/"), ignore=_WITHOUT_CACHES)
    for installed in _closure(REQUIREMENTS):
        for file in installed.files or ():
            if "__pycache__" not in file.parts and (path := Path(str(file.locate()))).is_file():
                _copy(path, staging)
    for path in files:
        _copy(path, staging)
    for library in _libraries(staging):
        _copy(library, staging)
    size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file() and not path.is_symlink())
    with image.open("wb") as disk:
        disk.truncate(size * 5 // 4 + _SLACK)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(staging), str(image)], check=True)


_WITHOUT_CACHES = shutil.ignore_patterns("__pycache__")


def _copy(path: Path, staging: Path) -> None:
    target = staging / path.relative_to("/")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
        if path.is_symlink():
            _copy((path.parent / path.readlink()).absolute(), staging)


def _closure(names: Iterable[str]) -> list[Distribution]:
    """The distributions of these names, and what they require."""
    found: dict[str, Distribution] = {}
    todo = [*names]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = distribution(name)
            requirements = map(Requirement, found[name].requires or ())
            todo += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [*found.values()]


def _libraries(staging: Path) -> set[Path]:
    """The shared libraries of everything there, by the host's own linker."""
    programs = [*staging.rglob("*.so"), *staging.rglob("*.so.*"), Path(sys.executable).resolve()]
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    return {
        Path(word)
        for line in said.splitlines()
        for word in line.split()
        if word.startswith("/") and ".so" in word and not word.endswith(":") and Path(word).is_file()
    }
