"""``python -m apps.vectors``: the command line. Data goes to stdout, everything else to stderr."""
# ruff: noqa: PLC0415 - --help must be fast: what a command needs is imported when it runs

import sys
import time
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

import typer

from persistmem.errors import Error, MissingLibraryError

app = typer.Typer(
    help="Search texts by what they mean. Their vectors are made once, and attached without copying ever after.",
    epilog='Example: python -m apps.vectors build && python -m apps.vectors search "fear of small spaces"',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

File = Annotated[
    Path | None,
    typer.Argument(
        help="Texts of your own: a name, a tab and a text on each line. Otherwise Open English WordNet: what 78,866 "
        "words mean.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
Count = Annotated[int, typer.Option("--count", "-k", min=1, max=1000, help="How many texts to give.")]
Model = Annotated[
    Literal["minilm", "ngrams"] | None,
    typer.Option(
        envvar="VECTORS_MODEL",
        help="minilm, which knows meaning, or ngrams, which knows spelling; the first that is installed.",
        show_default=False,
    ),
]


@app.command(epilog="Example: python -m apps.vectors build")
def build(
    file: File = None,
    model: Model = None,
    capacity: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many texts a new index can hold; otherwise a quarter more than now.", show_default=False
        ),
    ] = None,
) -> None:
    """Embed the texts, and keep what is not there yet. Broken off, it goes on there the next time."""
    from apps.vectors.collection import load_wordnet, read_texts
    from apps.vectors.index import Index

    texts = read_texts(file) if file is not None else load_wordnet()
    room = capacity if capacity is not None else len(texts) + len(texts) // 4 + 1000
    begun = time.monotonic()
    with Index.make(model, room) as index:
        with typer.progressbar(length=len(texts), file=sys.stderr if sys.stderr.isatty() else StringIO()) as bar:
            embedded = index.build(texts, bar.update)
        note(
            f"{embedded:,} texts embedded with {index.geometry.model} in {time.monotonic() - begun:.1f} s; "
            f"the index has {len(index):,}"
        )


@app.command(epilog='Example: python -m apps.vectors search "fear of small spaces"')
def search(text: Annotated[str, typer.Argument(show_default=False)], count: Count = 5) -> None:
    """Print the texts nearest to TEXT, the nearest first: score, name and text."""
    from apps.vectors.index import Index

    begun = time.monotonic()
    with Index.attach() as index:
        attached = time.monotonic()
        index.embedder.embed([text])
        opened = time.monotonic()
        answer = index.search(text, count)
        ended = time.monotonic()
        note(
            f"arena {index.origin.kind}: {1e3 * (attached - begun):.1f} ms to attach, {1e3 * (opened - attached):.1f} "
            f"ms to open the model, {1e3 * (ended - opened):.1f} ms to search in {len(index):,} texts"
        )
    for hit in answer.hits:
        typer.echo(f"{hit.score:.3f}  {hit.name}: {hit.text}")
    for damage in answer.damaged:
        note(f"not given, because it is damaged: {damage}; run python -m apps.vectors verify --repair")


@app.command(epilog='Example: python -m apps.vectors add selfie "a photograph that one takes of oneself"')
def add(
    name: Annotated[str, typer.Argument(show_default=False)], text: Annotated[str, typer.Argument(show_default=False)]
) -> None:
    """Add a text, or replace the one of the same NAME. Every process finds it at once."""
    from apps.vectors.index import Index

    with Index.attach() as index:
        replaced = index.add(name, text)
    note(f"{'replaced' if replaced else 'added'} {name}")


@app.command(epilog="Example: python -m apps.vectors remove selfie")
def remove(name: Annotated[str, typer.Argument(show_default=False)]) -> None:
    """Remove the text NAME."""
    from apps.vectors.index import Index

    with Index.attach() as index:
        index.remove(name)
    note(f"removed {name}")


@app.command(epilog="Example: python -m apps.vectors verify")
def verify(
    *,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Compute damaged vectors again from their texts, and drop what has lost its text."
        ),
    ] = False,
) -> None:
    """Check every text and every vector against its checksum. The exit status is 1 if something is damaged."""
    from apps.vectors.index import Index

    with Index.attach() as index:
        begun = time.monotonic()
        if repair:
            for done in index.repair():
                typer.echo(f"{done.damage}: {'computed again' if done.rebuilt else 'dropped'}")
            begun = time.monotonic()
        damaged = index.verify()
        seconds = time.monotonic() - begun
        note(f"{len(index):,} texts checked in {seconds:.2f} s, {len(damaged):,} damaged")
    for damage in damaged:
        typer.echo(str(damage))
    if damaged:
        raise typer.Exit(1)


@app.command(epilog="Example: python -m apps.vectors serve --workers 4")
def serve(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, which share the memory.")] = 4,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On the loopback interface.")] = 8000,
) -> None:
    """Answer GET /search?text=...&count=5 with JSON."""
    try:
        from apps.vectors.web import run
    except ImportError as error:
        raise MissingLibraryError(
            f"serving takes Starlette and Uvicorn ({error}): pip install starlette uvicorn"
        ) from error
    run(workers, port)


@app.command(epilog="Example: python -m apps.vectors demo --plots docs")
def demo(
    file: File = None,
    model: Model = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Draw vectors-start.png and vectors-memory.png there.",
            file_okay=False,
            exists=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show a cold and a warm start, memory that four processes share, and a simulated kernel upgrade."""
    from apps.vectors.demo import run

    raise typer.Exit(run(file, model, plots))


def note(message: str) -> None:
    """Say something to the person, on stderr, in one line."""
    typer.echo(f"vectors: {message}", err=True)


def main() -> None:
    """Run the command that the process's arguments name, and exit: 0, 1 (failed) or 2 (wrong usage)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for locales that cannot say every text
    try:
        app(prog_name="python -m apps.vectors")
    except Error as error:
        note(f"error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
