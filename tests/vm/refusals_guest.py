"""Reports what the real device's refusals say: by the name of the case, the errno and the message."""

import os
import subprocess
from collections.abc import Callable

from persistmem.errors import LiveUpdateError
from persistmem.liveupdate.device import DEVICE, KernelDevice
from persistmem.liveupdate.interface import Token

from . import guest


def refused(name: str, call: Callable[[], object]) -> None:
    try:
        call()
    except LiveUpdateError as error:
        guest.report(name, error.errno, str(error))
    else:
        guest.report(name, None, "it was not refused")


def while_another_process_holds_it() -> None:
    hold = f"exec 3<>{DEVICE}; echo held; read until_told"
    with subprocess.Popen(["sh", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        guest.report("holder", holder.pid)
        refused("held", KernelDevice)
        holder.communicate(b"end\n")


def as_nobody() -> KernelDevice:
    os.seteuid(65534)
    try:
        return KernelDevice()
    finally:
        os.seteuid(0)


def main() -> None:
    if not DEVICE.exists():
        refused("no device", KernelDevice)
        return
    refused("unprivileged", as_nobody)
    while_another_process_holds_it()
    with KernelDevice() as device:
        refused("held by itself", KernelDevice)
        session = device.create_session("documents")
        refused("created twice", lambda: device.create_session("documents"))
        refused("not handed over", lambda: device.retrieve_session("pictures"))
        refused("pipe", lambda: session.preserve(os.pipe()[0], Token(7)))


if __name__ == "__main__":
    main()
