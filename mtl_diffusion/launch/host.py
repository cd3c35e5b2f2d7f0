"""CPU threads, and memory on the host."""

import ctypes
import os
import sys

import torch

from .stop import LAUNCHER

# mallopt's names in malloc.h. glibc ignores a threshold above its limit, and keeps the one before.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST, _LARGEST_MMAP = 2**31 - 1, 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)


def choose_threads(num_threads: int | None) -> None:
    """Sets torch's number of threads.

    Args:
        num_threads: None: OMP_NUM_THREADS, or else this machine's cores, shared by its processes.
    """
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    # Launchers set it to 1 where the user has not, and would leave the other cores idle.
    if asked == "1" and LAUNCHER is not None:
        asked = ""
    threads = num_threads or (int(asked) if asked.isdecimal() else 0)
    torch.set_num_threads(threads or max(1, (cores or 1) // local_processes))


def keep_freed_memory() -> None:
    """Lets glibc reuse the memory of freed tensors; other C libraries are left as they are.

    Every step allocates the same activations, whose pages the system would clear each time: a tenth
    of the time of `configs/cifar10_cpu.yaml`.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
