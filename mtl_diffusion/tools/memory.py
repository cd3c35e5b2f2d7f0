"""Memory of the host."""

import ctypes
import sys

# mallopt's names in malloc.h, with values for "never" and "not below two gigabytes".
_MMAP_MAX, _TRIM_THRESHOLD = (-4, 0), (-1, 2**31 - 1)


def keep_freed_memory() -> None:
    """Lets glibc reuse the memory of freed tensors; other C libraries are left as they are.

    On a CPU every step allocates the same activations, whose pages the system would clear each
    time: a tenth of the time of training, and up to half of that of sampling in large batches. It
    is for commands: a library does not decide for its process.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
        mallopt(*_MMAP_MAX)  # a block of its own would go back to the system when it is freed
        mallopt(*_TRIM_THRESHOLD)
