"""What every live-update device does, as seen on Linux 7.2.13 and 7.3.4. Knows the interface, and no implementation.

A case is a function ``before_NAME``, ``after_NAME`` or both. All *before* functions run in one kernel, then comes one
kexec, then all *after* functions run in the next. What they share are constants. Run it on a device of your own with
``Machine`` and ``run_stage``; ``simulated.py`` does so on the simulator, ``tests/vm`` on the kernel's own.
"""
