"""What an upgrade has to tell, while it goes on and afterwards. Knows terminals and handovers; decides nothing."""

from contextlib import ExitStack
from typing import Self

from persistmem.agent.protocol import Prepared
from persistmem.agent.records import Handover
from persistmem.cli.output import Work, counted, duration, moment, note, say, working
from persistmem.errors import RefusedError
from persistmem.sizes import format_size
from persistmem.upgrade import Observer, SavedArena


class Progress(Observer):
    """Tells the person how far an upgrade is."""

    def __init__(self) -> None:
        self._shown = ExitStack()
        self._work: Work | None = None

    def prepared(self, prepared: Prepared, *, through_memory: bool) -> None:
        """Say how the preparation went."""
        tell_prepared(prepared, through_memory=through_memory)

    def memory_refused(self, why: RefusedError) -> None:
        """Say why arenas go by the disk."""
        note(f"{why}; so arenas go by the disk")

    def saving(self, total: int) -> None:
        """Show a bar."""
        self._work = self._shown.enter_context(working("saving", total))

    def progress(self, count: int) -> None:
        """Move the bar."""
        if self._work is not None:
            self._work.advance(count)

    def saved(self, arenas: list[SavedArena]) -> None:
        """Remove the bar, and say what was saved."""
        self._shown.close()
        tell_saved(arenas)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()


def tell_prepared(prepared: Prepared, *, through_memory: bool) -> None:
    """Say how the preparation went."""
    told = counted(prepared.applications, "application")
    say(f"told       {told}, waited {duration(prepared.waited)}")
    if prepared.unready:
        note(f"{prepared.unready} of {told} did not take their last snapshots in time, or failed to")
    if through_memory:
        arenas = f"{counted(prepared.arenas, 'arena')}, {format_size(prepared.size)}"
        say(f"preserved  {arenas}, in {duration(prepared.preserve)}")


def tell_saved(arenas: list[SavedArena]) -> None:
    """Say what was saved."""
    written = sum(arena.saved.written for arena in arenas)
    say(f"saved      {counted(len(arenas), 'arena')}, {format_size(written)} on disk")
    for arena in arenas:
        if arena.damage:
            note(f"damaged: arena {arena.saved.record.name}, saved as it is: {arena.damage}")


def tell_handover(handover: Handover, *, simulated: bool) -> None:
    """Say how the arenas got from one kernel to the next."""
    how = " (simulated)" if simulated else ""
    say(f"kernel     {handover.kernel_from} -> {handover.kernel_to}{how}, handover {handover.number}")
    if not simulated:
        say(f"left       {moment(handover.left) if handover.left else 'at a time that nobody wrote down'}")
    arrived = f"{counted(handover.arenas, 'arena')}, {format_size(handover.size)}"
    by_disk = f"; {handover.saved} of them by the disk" if handover.saved else ""
    say(f"arrived    {arrived}{by_disk}; identity, size and header checked")
    if handover.left:
        boot = f", {duration(handover.boot)} boot" if handover.boot else ""
        kexec = duration(max(0.0, handover.dark - handover.boot - handover.retrieve))
        say(f"preserve   {duration(handover.preserve)}, while arenas were still served")
        retrieve = duration(handover.retrieve)
        say(f"dark       {duration(handover.dark)}: {kexec} kexec{boot}, {retrieve} retrieve and check")
    say(f"lost       {handover.lost_count or 'nothing'}")
    for loss in handover.lost:
        note(f"lost: arena {loss.name}: {loss.why}")
    if handover.lost_count > len(handover.lost):
        note(f"lost: and {handover.lost_count - len(handover.lost)} more; see the agent's log")
