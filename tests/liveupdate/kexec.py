"""A kexec that is looked at: its image is caught, and the jump itself fails because there is no such program."""

import contextlib
import os

from persistmem.errors import LiveUpdateError
from persistmem.liveupdate.simulator import SimulatedDevice


def image_of(device: SimulatedDevice) -> int:
    """The image that the device would hand over now, to boot another kernel from."""
    caught: list[int] = []

    def command(image_fd: int) -> list[str]:
        caught.append(os.dup(image_fd))
        return ["/nonexistent/kernel"]

    with contextlib.suppress(LiveUpdateError):
        device.kexec(command)
    return caught[0]
