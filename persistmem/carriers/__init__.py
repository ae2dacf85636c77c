"""Who keeps a memfd when the process, or the kernel, ends."""
