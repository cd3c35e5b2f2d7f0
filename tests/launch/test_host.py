import sys

import pytest

from mtl_diffusion.launch.host import choose_threads


def test_without_glibc_memory_is_left_to_the_system(monkeypatch):
    from mtl_diffusion.launch import host

    loaded = []
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: loaded.append(name) or object())
    host.keep_freed_memory()  # a C library without mallopt
    assert loaded == [None] * (sys.platform == "linux")
    monkeypatch.setattr(host.sys, "platform", "darwin")
    loaded.clear()
    host.keep_freed_memory()
    assert loaded == []


@pytest.fixture
def chosen(monkeypatch):
    """The numbers of threads that are set, on a machine of eight cores without a launcher."""
    from mtl_diffusion.launch import host as process

    chosen = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(process, "LAUNCHER", None)
    return chosen


def test_threads_are_shared_by_the_processes_of_a_machine(chosen, monkeypatch):
    for processes in ("1", "2", "16"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        choose_threads(None)
    choose_threads(3)
    assert chosen == [8, 4, 1, 3]


def test_a_number_of_threads_from_outside_counts(chosen, monkeypatch):
    for text in ("1", "5", "2,1", "", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        choose_threads(None)
    choose_threads(3)
    assert chosen == [1, 5, 2, 8, 8, 8, 3]


def test_the_single_thread_of_a_launcher_does_not(chosen, monkeypatch):
    """`accelerate launch` and `torchrun` set it, where the user has not."""
    monkeypatch.setattr("mtl_diffusion.launch.host.LAUNCHER", 1)
    for text in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        choose_threads(None)
    assert chosen == [8, 2]
