"""Threads of a process."""

import pytest

from mtl_diffusion.launch import host


@pytest.mark.parametrize(
    ("environ", "launcher", "num_threads", "chosen"),
    [
        ({}, None, None, 8),
        ({}, None, 3, 3),
        ({"LOCAL_WORLD_SIZE": "2"}, None, None, 4),
        ({"OMP_NUM_THREADS": "1"}, None, None, 1),
        ({"OMP_NUM_THREADS": "2,1"}, None, None, 2),
        ({"OMP_NUM_THREADS": "5"}, None, 3, 3),
        ({"OMP_NUM_THREADS": "1"}, 1, None, 8),  # launchers set it where the user has not
        ({"OMP_NUM_THREADS": "2"}, 1, None, 2),
    ],
)
def test_threads(environ, launcher, num_threads, chosen, monkeypatch):
    """On a machine of eight cores."""
    asked = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(host, "LAUNCHER", launcher)
    host.choose_threads(num_threads)
    assert asked == [chosen]
