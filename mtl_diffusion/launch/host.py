"""How a training process uses its machine: the processor's cores, and memory on the host."""

import ctypes
import os
import sys

import torch

# mallopt's names in malloc.h, and the largest threshold that every version of glibc takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
LARGEST_MMAP = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)


def use_all_cores(num_threads: int | None) -> None:
    """Shares the cores among this machine's processes; `accelerate launch` would leave one each."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(num_threads or max(1, cores // local_processes))


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
        # Beyond what it takes, a threshold is refused, and the one before stays.
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP)
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
