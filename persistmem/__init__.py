"""An application's hot state survives the process and the kernel.

>>> import persistmem
>>> persistmem.Origin.created("7.3.4").kind
'created'
"""

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from persistmem.api import *  # noqa: F403 - one list of names, in api.py


# Importing persistmem costs next to nothing: the command line's --help, and programs that may never attach, want that.
def __getattr__(name: str) -> object:
    if not name.startswith("_"):
        import persistmem.api as api  # noqa: PLC0415, PLR0402 - "from persistmem" would ask this very function

        if name in api.__all__:
            globals()[name] = value = getattr(api, name)
            return value
    raise AttributeError(f"module 'persistmem' has no attribute {name!r}")


def __dir__() -> list[str]:
    import persistmem.api as api  # noqa: PLC0415, PLR0402 - as above

    return sorted([*globals(), *api.__all__])
