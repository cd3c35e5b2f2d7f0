"""CPU threads."""

import os

import torch

from .stop import LAUNCHER


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
