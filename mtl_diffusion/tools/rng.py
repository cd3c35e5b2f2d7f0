"""Random numbers that are a pure function of their key."""

import hashlib

import torch


def generator(*key: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose whole stream is a function of `key`, such as `(seed, step, "noise")`.

    Nothing random in a run is drawn from a stream that has been advanced by earlier steps. So a
    run that stops and resumes at step k draws the same numbers as without the stop, and the same
    global batch can be drawn whole by every process and sliced, for any number of processes.

    Args:
        key: plain ints and strings. Order and type count: `1` and `"1"` are two keys.
        device: where the numbers are drawn. CPU and CUDA give different streams for one key.

    Returns:
        A `torch.Generator` on `device`, seeded with 63 bits of the sha256 of the key.
    """
    assert key and all(type(part) in (int, str) for part in key), f"not ints and strings: {key}"
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1  # manual_seed takes a signed 64-bit integer
    return torch.Generator(device).manual_seed(seed)
