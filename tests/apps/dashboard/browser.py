"""A real browser, headless: Debian's Chromium, driven by Playwright. Knows nothing of what it shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

CHROMIUM: Final = Path("/usr/bin/chromium")

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install playwright", exc_type=ImportError
)
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402 - only where it is installed

__all__ = ["CHROMIUM", "CONTRAST", "Browser", "Page", "chromium", "expect", "watched"]

CONTRAST: Final = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!own || element.closest("noscript")) continue;
    const style = getComputedStyle(element);
    const text = parse(element.closest("svg") ? style.fill : style.color).slice(0, 3);
    const [high, low] = [light(text), light(ground(element))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName}.${element.className.baseVal ?? element.className} ${own}: ${ratio}`);
  }
  return poor;
}
"""
"""Texts whose contrast is below the 4.5 of WCAG 2, level AA."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start it."""
    with sync_playwright() as running:
        # without a sandbox, because tests may run as root, for whom it has none
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def watched(page: Page) -> list[str]:
    """Return a list of what goes wrong on a page: errors of scripts, refusals of its policy, dialogs."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def on_dialog(dialog: object) -> None:
        wrong.append(f"dialog {dialog}")

    page.on("dialog", on_dialog)
    return wrong
