"""An application's hot state survives the process and the kernel.

>>> import persistmem
>>> persistmem.Origin.created("7.3.4").kind
'created'
"""

import sys

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from persistmem.app import App, Found
    from persistmem.arena import (
        Arena,
        Damage,
        Generation,
        Origin,
        Piece,
        Region,
        Usage,
        VerifyReport,
        register_type,
        verified,
    )
    from persistmem.attachment import attach, before_kexec
    from persistmem.cache import Cache, CacheStats
    from persistmem.errors import (
        AgentError,
        ArenaFullError,
        ArgumentError,
        BusyError,
        CarrierError,
        ClosedError,
        CorruptError,
        DamageWarning,
        Error,
        ExistsError,
        IncompatibleKernelError,
        InvalidNameError,
        KernelImageError,
        KexecError,
        LiveUpdateError,
        MigrationError,
        MissingLibraryError,
        NewerFormatError,
        NewerStateError,
        NotFoundError,
        ProtocolError,
        RefusedError,
        SizeError,
        StaleArenaError,
        StorageError,
        UnpreservedWarning,
        UnsupportedTypeError,
    )

__all__ = [
    "AgentError",
    "App",
    "Arena",
    "ArenaFullError",
    "ArgumentError",
    "BusyError",
    "Cache",
    "CacheStats",
    "CarrierError",
    "ClosedError",
    "CorruptError",
    "Damage",
    "DamageWarning",
    "Error",
    "ExistsError",
    "Found",
    "Generation",
    "IncompatibleKernelError",
    "InvalidNameError",
    "KernelImageError",
    "KexecError",
    "LiveUpdateError",
    "MigrationError",
    "MissingLibraryError",
    "NewerFormatError",
    "NewerStateError",
    "NotFoundError",
    "Origin",
    "Piece",
    "ProtocolError",
    "RefusedError",
    "Region",
    "SizeError",
    "StaleArenaError",
    "StorageError",
    "UnpreservedWarning",
    "UnsupportedTypeError",
    "Usage",
    "VerifyReport",
    "attach",
    "before_kexec",
    "register_type",
    "verified",
]

_HOMES = ("persistmem.errors", "persistmem.arena", "persistmem.attachment")
_HOMES_APART = {
    "App": "persistmem.app",
    "Found": "persistmem.app",
    "Cache": "persistmem.cache",
    "CacheStats": "persistmem.cache",
}


# Importing persistmem costs next to nothing: the command line's --help, and programs that may never attach, want that.
def __getattr__(name: str) -> object:
    if name in __all__:
        for home in (_HOMES_APART[name],) if name in _HOMES_APART else _HOMES:
            __import__(home)
            value: object = getattr(sys.modules[home], name, None)
            if value is not None:
                globals()[name] = value
                return value
    raise AttributeError(f"module 'persistmem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
