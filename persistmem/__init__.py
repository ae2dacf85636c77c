"""An application's hot state survives the process and the kernel.

>>> import persistmem
>>> arena = persistmem.attach("recommender", size="1MiB")  # doctest: +SKIP
>>> arena.snapshot("profiles", {"ada": 36})  # doctest: +SKIP
"""

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
from persistmem.errors import (
    AgentError,
    ArenaFullError,
    ArgumentError,
    BusyError,
    ClosedError,
    CorruptError,
    DamageWarning,
    Error,
    ExistsError,
    IncompatibleKernelError,
    InvalidNameError,
    LiveUpdateError,
    NewerFormatError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    SizeError,
    StaleArenaError,
    UnsupportedTypeError,
)

__all__ = [
    "AgentError",
    "Arena",
    "ArenaFullError",
    "ArgumentError",
    "BusyError",
    "ClosedError",
    "CorruptError",
    "Damage",
    "DamageWarning",
    "Error",
    "ExistsError",
    "Generation",
    "IncompatibleKernelError",
    "InvalidNameError",
    "LiveUpdateError",
    "NewerFormatError",
    "NotFoundError",
    "Origin",
    "Piece",
    "ProtocolError",
    "RefusedError",
    "Region",
    "SizeError",
    "StaleArenaError",
    "UnsupportedTypeError",
    "Usage",
    "VerifyReport",
    "register_type",
    "verified",
]
