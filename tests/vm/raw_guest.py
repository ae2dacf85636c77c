"""Kexecs without asking anybody, from a machine on which nothing was ever preserved."""

import os

from . import guest


def main() -> None:
    guest.tell("kernel", os.uname().release)
    if guest.stage() + 1 < guest.kernels():
        guest.load_next()
        guest.kexec()


if __name__ == "__main__":
    main()
