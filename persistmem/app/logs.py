"""The application framework's log: one line for what was found, and one for each trouble until it is over."""

import sys
from typing import Final

from persistmem.app.found import log_line

LOGGER: Final = "persistmem.app"


def tell(line: str) -> None:
    """Log what is as it should be."""
    # Importing logging takes longer than starting an application; where nobody has, nobody wants to read this.
    if "logging" in sys.modules:
        sys.modules["logging"].getLogger(LOGGER).info(line)


def warn(line: str) -> None:
    """Log what is not."""
    import logging  # noqa: PLC0415 - as above

    logging.getLogger(LOGGER).warning(line)


class Troubles:
    """Tells of each kind of trouble once, until saving works again."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._told: set[type[BaseException]] = set()

    def note(self, what: str, error: BaseException) -> None:
        """Log that ``what`` failed, if that is news."""
        if type(error) not in self._told:
            self._told.add(type(error))
            warn(log_line({"app": self._app, what: "failed", "error": type(error).__name__, "message": str(error)}))

    def over(self) -> None:
        """Saving works."""
        if self._told:
            self._told.clear()
            tell(log_line({"app": self._app, "save": "works again"}))
