"""CPU threads, and memory on the host."""

import ctypes
import os
import sys

import torch

from .stop import LAUNCHER

# mallopt's names in malloc.h, and the largest threshold that every version of glibc takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
LARGEST_MMAP = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)


def choose_threads(num_threads: int | None) -> None:
    """Sets torch's number of threads.

    Args:
        num_threads: of the configuration. None: that of OMP_NUM_THREADS, or else the
            cores of this machine, shared evenly by its processes.
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
    """Lets glibc reuse the memory of freed tensors, and not return it to the system.

    Every step allocates the same activations. By default glibc gives large ones back, and the
    system clears their pages when they are touched again: 28,000 page faults a step of
    `configs/cifar10_cpu.yaml`, a tenth of its time. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # glibc ignores a threshold above its limit, and keeps the one before.
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP)
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
