"""How much memory there is, and how much a process took."""

import os
import pathlib
import resource
import sys

import jax


def available() -> int:
    """Return the bytes that can be allocated where arrays live."""
    device = jax.devices()[0]
    if device.platform != "cpu" and (held := device.memory_stats()):
        return held["bytes_limit"] - held["bytes_in_use"]
    try:
        return _field("/proc/meminfo", "MemAvailable")
    except OSError:  # It is no Linux.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    try:
        return _field("/proc/self/status", "VmHWM")  # The peak of getrusage would begin with the parent's.
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _field(path: str, name: str) -> int:
    lines = pathlib.Path(path).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
