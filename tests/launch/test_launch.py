"""Several processes: the files of configs/accelerate, and what crosses between processes."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from forked import ARGUMENTS, SHORT, STEPS, free_port, train

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/accelerate"
SINGLE, SEVERAL = DistributedType.NO, DistributedType.MULTI_GPU
# name -> (kind, machines, processes)
SHAPES = {
    "one_gpu": (SINGLE, 1, 1),
    "one_machine_8gpu": (SEVERAL, 1, 8),
    "two_machines_8gpu": (SEVERAL, 2, 16),
    "two_cpu_processes": (SEVERAL, 1, 2),
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_each_file(path):
    config = load_config_from_file(str(path))  # refuses keys that it doesn't know
    found = (config.distributed_type, config.num_machines, config.num_processes)
    assert found == SHAPES[path.stem]
    # The run's own configuration has precision and compilation; a launcher's would be in its way.
    assert config.mixed_precision == "no" and not config.dynamo_config
    assert not config.use_cpu  # with it accelerate starts a single process


def test_every_file_is_there_and_the_docs_name_no_other():
    assert {path.stem for path in FOLDER.iterdir()} == set(SHAPES)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"configs/accelerate/(\w+)\.yaml", text))
    assert named == set(SHAPES)


def start(config, *launcher, **arguments):
    """`accelerate launch --config_file ...`, as the docs have it, on CPUs."""
    flags = [f"--{name}={value}" for name, value in (ARGUMENTS | arguments).items()]
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(FOLDER / f"{config}.yaml"), *launcher),
        *(str(ROOT / "scripts/train.py"), *flags),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def processes_of(folder):
    facts = Path(folder) / f"checkpoints/step-{STEPS}/facts.json"
    return json.loads(facts.read_text())["num_processes"]


@pytest.mark.slow
def test_two_processes_on_one_machine(tmp_path):
    port = ("--main_process_port", str(free_port()))
    run = start("two_cpu_processes", *port, output_dir=tmp_path / "run", num_processes=2)
    text, _ = run.communicate(timeout=300)
    assert run.returncode == 0, text
    assert processes_of(tmp_path / "run") == 2


@pytest.mark.slow
def test_one_process_on_each_of_two_machines(tmp_path):
    """Two launchers that meet at an address, as on two machines; here both are this one."""
    meeting = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()))
    runs = [
        start(
            "two_machines_8gpu",
            *("--num_processes", "2", *meeting, "--machine_rank", str(rank)),
            output_dir=tmp_path / "run",
        )
        for rank in (0, 1)
    ]
    texts = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], texts
    assert processes_of(tmp_path / "run") == 2


def note_reductions(folder):
    """Each all-reduce of gradients is a line of a file: step and number of values."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel

    import mtl_diffusion.loop

    rank = int(os.environ["RANK"])
    build, step_of = DistributedDataParallel.__init__, mtl_diffusion.loop.train_step
    now = []

    def noting(group, bucket):
        with open(folder / f"rank-{rank}", "a") as file:
            file.write(f"{now[-1]} {bucket.buffer().numel()}\n")
        return allreduce_hook(group, bucket)

    def hooked(self, *arguments, **options):
        build(self, *arguments, **options)
        self.register_comm_hook(None, noting)

    def step(run, index, *rest):
        now.append(index)
        step_of(run, index, *rest)

    DistributedDataParallel.__init__ = hooked
    mtl_diffusion.loop.train_step = step


@pytest.mark.parametrize("microbatch", [6, 2])
def test_gradients_cross_once_an_optimiser_step(microbatch, tmp_path):
    """With one microbatch or with three: each value of the gradient once, four bytes."""
    code, run = train(
        tmp_path / "run",
        *(*SHORT, partial(note_reductions, tmp_path)),
        processes=2,
        total_batch_size=12,
        per_device_batch_size=microbatch,
    )
    assert code == [0, 0], run.text
    moments = safetensors.torch.load_file(
        run.folder / f"checkpoints/step-{STEPS}/optimizer.safetensors"
    )
    trained = sum(
        value.numel()
        for name, value in moments.items()
        if name.startswith(("exp_avg of", "momentum of"))
    )
    for rank in (0, 1):
        values = [0] * STEPS
        for line in (tmp_path / f"rank-{rank}").read_text().splitlines():
            step, count = map(int, line.split())
            values[step] += count
        assert values == [trained] * STEPS
