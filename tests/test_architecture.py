"""The imports that docs/architecture.md allows are the only ones there are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import persistmem

PACKAGE = Path(persistmem.__file__).parent

COMMON = {"errors", "names", "sizes", "durations", "origin", "threads", "folios", "termination"}
ALLOWED = {
    "arena": COMMON,
    "liveupdate": COMMON,
    "carriers": COMMON | {"liveupdate"},
    "agent": COMMON | {"arena", "carriers", "liveupdate"},
    "choice": COMMON | {"carriers", "agent"},
    "store": COMMON | {"arena", "carriers", "agent"},
    "attachment": COMMON | {"arena", "carriers", "agent", "choice", "store"},
    "cache": COMMON | {"arena", "attachment"},
    "adapters": COMMON | {"arena", "cache", "app"},
    "app": COMMON | {"arena", "attachment", "agent"},
    "metrics": COMMON | {"arena", "agent", "cache"},
    "administration": COMMON | {"agent", "choice"},
    "upgrade": COMMON | {"administration", "arena", "carriers", "agent", "liveupdate"},
    "testing": COMMON | {"arena", "attachment", "app", "choice"},
    "pytest_plugin": {"testing"},
    "termination": {"threads"},
    "errors": set[str](),
    "origin": set[str](),
    "names": {"errors"},
    "sizes": {"errors"},
    "durations": {"errors"},
}


def imports_of(path: Path) -> Iterator[str]:
    """The parts of persistmem that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "persistmem" else [f"persistmem.{a.name}" for a in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "persistmem" and rest:
                yield rest.partition(".")[0]


def test_every_part_imports_only_what_the_architecture_allows() -> None:
    forbidden = [
        f"{path.relative_to(PACKAGE)} imports {part}"
        for path in PACKAGE.rglob("*.py")
        for own in [path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
        if own in ALLOWED
        for part in imports_of(path)
        if part != own and part not in ALLOWED[own]
    ]
    assert forbidden == []


def test_only_the_layout_knows_the_offsets_of_the_format() -> None:
    users = {
        path.name
        for path in (PACKAGE / "arena").glob("*.py")
        if "struct.Struct(" in path.read_text() and path.name not in ("locks.py", "types.py")
    }
    assert users == {"layout.py"}
