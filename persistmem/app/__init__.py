"""Applications whose state just stays: declared once, loaded at the start, saved when it changes."""

from persistmem.app.app import App
from persistmem.app.found import Found
from persistmem.app.loading import StateDamage

__all__ = ["App", "Found", "StateDamage"]
