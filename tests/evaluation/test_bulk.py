"""Bulk work: the same outcome however it is cut and interrupted, and what it cost."""

import pytest
import torch

from mtl_diffusion.evaluation.bulk import Bulk, Job, evaluations_of


class Twice(torch.nn.Module):
    def forward(self, sample):
        return 2 * sample


NET = Twice()


def job(log, count=7):
    def draw(rows):
        log.append(rows)
        return NET(torch.tensor(rows, dtype=torch.float32))

    return Job("twice", {"seed": 0}, count, draw)


def bulk(folder, rank=0, world=1, batch_size=3):
    made = Bulk(folder, NET, batch_size)

    class State:
        process_index, num_processes, is_main_process = rank, world, rank == 0

        def wait_for_everyone(self):
            pass

    made.state = State()
    return made


def test_an_interrupted_job_goes_on(tmp_path):
    log = []
    broken = job(log)

    def stop(rows):
        if rows.start >= 3:
            raise KeyboardInterrupt
        return broken.draw(rows)

    with pytest.raises(KeyboardInterrupt):
        bulk(tmp_path).draw([Job("twice", {"seed": 0}, 7, stop)])
    bulk(tmp_path).draw([job(log)])
    assert log == [range(0, 3), range(3, 6), range(6, 7)]
    assert not list(tmp_path.rglob(".writing-*"))


def test_processes_share_the_chunks(tmp_path):
    logs = [[], []]
    for rank in (0, 1):
        bulk(tmp_path, rank, 2).draw([job(logs[rank])])
    assert logs == [[range(0, 3), range(6, 7)], [range(3, 6)]]
    assert bulk(tmp_path).read(job([])).values.tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_more_rows_reuse_the_full_chunks(tmp_path):
    log = []
    bulk(tmp_path).draw([job(log, count=6)])
    bulk(tmp_path).draw([job(log, count=8)])
    assert log == [range(0, 3), range(3, 6), range(6, 8)]


def test_evaluations_count_the_samples_of_each_call(pipe):
    random = [torch.Generator().manual_seed(i) for i in range(3)]
    with evaluations_of(pipe.unet) as seen:
        pipe(class_label=["cat"] * 3, guidance_scale=2.0, num_inference_steps=6, generator=random)
    assert seen == [3 * (6 + 1)]  # one of six steps is inside the default interval
