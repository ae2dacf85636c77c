"""What is in the memory: format, snapshots, regions, checksums. Given a descriptor; knows nothing of who keeps it."""

from persistmem.arena.arena import KEEP_DEFAULT, TIMEOUT_DEFAULT, Arena, Generation
from persistmem.arena.regions import Region
from persistmem.arena.survey import Damage, Piece, Usage, VerifyReport
from persistmem.arena.transaction import freeze
from persistmem.arena.types import register_type
from persistmem.arena.views import verified
from persistmem.origin import Origin

__all__ = [
    "KEEP_DEFAULT",
    "TIMEOUT_DEFAULT",
    "Arena",
    "Damage",
    "Generation",
    "Origin",
    "Piece",
    "Region",
    "Usage",
    "VerifyReport",
    "freeze",
    "register_type",
    "verified",
]
