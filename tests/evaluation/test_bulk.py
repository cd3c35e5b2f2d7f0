"""Bulk work: the same outcome however it is cut and interrupted, and what it cost."""

import copy

import pytest
import torch
from diffusers import EDMEulerScheduler

from mtl_diffusion.evaluation.bulk import Bulk, Job
from mtl_diffusion.evaluation.parts import Context
from mtl_diffusion.evaluation.settings import Settings
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline


class Twice(torch.nn.Module):
    def forward(self, sample):
        return 2 * sample


NET = Twice()


def job(log, count=7, stop=None, labels=None, **same):
    def draw(rows, **_):
        if rows.start == stop:
            raise KeyboardInterrupt
        log.append(rows)
        return NET(torch.tensor(rows, dtype=torch.float32))

    return Job("twice", draw, same, {"label": list(range(count)) if labels is None else labels})


def bulk(folder, rank=0, world=1, batch_size=3, model="m"):
    made = Bulk(folder, NET, batch_size, {"weights": model})

    class State:
        process_index, num_processes, is_main_process = rank, world, rank == 0

        def wait_for_everyone(self):
            pass

    made.state = State()
    return made


def test_an_interrupted_job_goes_on(tmp_path):
    log = []
    with pytest.raises(KeyboardInterrupt):
        bulk(tmp_path).draw([job(log, stop=3)])
    bulk(tmp_path).draw([job(log)])
    assert log == [range(0, 3), range(3, 6), range(6, 7)]
    assert not list(tmp_path.rglob(".writing-*"))


def test_processes_share_the_chunks(tmp_path):
    logs = [[], []]
    for rank in (0, 1):
        bulk(tmp_path, rank, 2).draw([job(logs[rank])])
    assert logs == [[range(0, 3), range(6, 7)], [range(3, 6)]]
    assert bulk(tmp_path).read(job([])).values.tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_more_rows_reuse_the_full_chunks_and_others_reuse_nothing(tmp_path):
    log = []
    bulk(tmp_path).draw([job(log, count=6)])
    bulk(tmp_path).draw([job(log, count=8)])
    assert log == [range(0, 3), range(3, 6), range(6, 8)]
    tensors = job(log, labels=torch.zeros(7))
    for other, model in ((job(log, steps=5), "m"), (tensors, "m"), (job(log), "n")):
        made = bulk(tmp_path, model=model)
        log.clear()
        made.draw([other])
        made.draw([other])
        assert log == [range(0, 3), range(3, 6), range(6, 7)]


def test_what_another_pipeline_drew_is_not_scored(build_pipe, monkeypatch, tmp_path):
    """Neither that of other code, nor of another scheduler; having been saved makes no other."""
    pipe = build_pipe()

    def drawer(pipe):
        given = Context(pipe, None, None, None, None, Settings())
        return Bulk("x", pipe.unet, 3, given.drawer()).model

    first = drawer(pipe)
    pipe.save_pretrained(tmp_path)
    assert drawer(pipe) == first
    again = MultiTaskPipeline(pipe.unet, pipe.tokenizer, copy.deepcopy(pipe.scheduler))
    assert drawer(again) == first
    again.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    other_kind = drawer(again)
    again.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, rho=5.0)
    other_levels = drawer(again)
    changed = "pipeline_12345678"  # edits start elsewhere
    monkeypatch.setattr(MultiTaskPipeline, "module_name", classmethod(lambda cls: changed))
    assert len({first, other_kind, other_levels, drawer(pipe)}) == 4
