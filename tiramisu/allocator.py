"""How the C library hands out memory for large tensors."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # of <malloc.h>
CHOICES_OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_large_tensors() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones.

    By default it returns each large block to the system at once and asks for fresh pages at every tensor, which costs
    a training step on the CPU a third of its time. Nothing is changed on other systems and C libraries, with
    another allocator preloaded, or where the environment already sets what this would.

    Returns:
        Whether anything was changed.
    """
    if sys.platform != "linux" or "LD_PRELOAD" in os.environ or any(name in os.environ for name in CHOICES_OF_THE_USER):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    largest, never = 2**31 - 1, -1
    # Before 2.35 glibc refuses thresholds above 32 MiB, but does without separate mappings if told so.
    kept = library.mallopt(M_MMAP_THRESHOLD, largest) or library.mallopt(M_MMAP_MAX, 0)
    return bool(library.mallopt(M_TRIM_THRESHOLD, never) and kept)


def limit_arenas(count: int = 2) -> None:
    """Have the threads of this process share a few of glibc's arenas.

    Each thread of a server would get its own, which keeps what the thread has freed: 200 uploads to the app made it
    grow by 260 MiB with glibc's default of eight arenas a core, and by 150 MiB with this. Arenas that are there already
    stay: `MALLOC_ARENA_MAX=2` in the environment, which overrides this, left 3 MiB. No effect without glibc.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_ARENA_MAX, count)
