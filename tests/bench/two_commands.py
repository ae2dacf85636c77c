"""A typer program with two commands: what :mod:`tests.bench.imports` compares the command line's help with."""

from typing import Annotated

import typer

app = typer.Typer(help="Keep things.")


@app.command()
def put(name: Annotated[str, typer.Argument(help="What to keep.")]) -> None:
    """Keep something."""
    typer.echo(name)


@app.command()
def take(name: Annotated[str, typer.Argument(help="What to give back.")]) -> None:
    """Give it back."""
    typer.echo(name)


if __name__ == "__main__":
    app()
