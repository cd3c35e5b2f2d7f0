"""Several processes, and the launcher that started them."""

import json
import os
import re
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import accelerate.commands.launch as launch_of_accelerate
import pytest
from accelerate.commands import accelerate_cli
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from forked import ARGUMENTS, SCRIPT, SHORT, Run, context, die, write_to
from tables import write_images
from tiny import flags

from mtl_diffusion.checkpoints.store import load_latest
from mtl_diffusion.config import TrainConfig
from mtl_diffusion.launch.preflight import _process_faults

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/accelerate"
STOPPED = 75
PLAIN = ("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")


def test_a_rank_that_dies_ends_the_other(tmp_path):
    """Without a launcher; with gloo, whose connection breaks."""
    run = Run(tmp_path / "run", *SHORT, partial(die, 4, only_rank=1), processes=2)
    codes = run.wait()  # gloo's own limit is half an hour
    assert codes[1] == -9 and codes[0] not in (0, STOPPED)
    assert run.steps == [3]


def test_accelerate_reads_each_file_and_the_docs_name_no_other():
    found = {}
    for path in CONFIGS.iterdir():
        config = load_config_from_file(str(path))  # refuses keys that it doesn't know
        found[path.stem] = (config.distributed_type, config.num_machines, config.num_processes)
        # The run's own configuration has precision and compilation; these would be in its way.
        assert config.mixed_precision == "no" and not config.dynamo_config
        assert not config.use_cpu  # with it accelerate starts a single process
    assert found == {
        "one_gpu": (DistributedType.NO, 1, 1),
        "one_machine_8gpu": (DistributedType.MULTI_GPU, 1, 8),
        "two_machines_8gpu": (DistributedType.MULTI_GPU, 2, 16),
        "two_cpu_processes": (DistributedType.MULTI_GPU, 1, 2),
    }
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert set(re.findall(r"configs/accelerate/(\w+)\.yaml", text)) == set(found)


class Launch(Run):
    """A real `accelerate launch`, in a session of its own; what it starts are real processes."""

    def __init__(self, folder, log, *launcher, **arguments):
        self.folder, self.log = Path(folder), Path(log)
        self.log.write_text("")
        flags_of_run = flags(**ARGUMENTS | {"output_dir": folder} | arguments)
        command = ["accelerate", "launch", *launcher, str(SCRIPT), *flags_of_run]
        self.launcher = context.Process(target=_launch, args=(command, log))
        self.launcher.start()
        self.processes = [self.launcher]

    def wait_for_training(self):
        """Ids of the processes that train, by rank."""

        def trains():
            assert self.launcher.is_alive(), self.text
            return re.search(r"[1-9]\d*\.?\d*k?/800k", self.text)

        self.wait_for(trains, 120)
        path = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        pids = map(int, path.read_text().split())
        return [i for i in pids if b"train.py" in Path(f"/proc/{i}/cmdline").read_bytes()]

    def stop(self, number):
        """Sends a signal to the launcher, and waits until none of the processes is left."""
        pids = self.wait_for_training()
        os.kill(self.launcher.pid, number)
        self.wait_for(lambda: not any(map(running, pids)), 120)
        self.launcher.join(120)
        (step,) = self.steps  # saved once
        assert load_latest(self.folder / "checkpoints")[0].step == step
        return pids, step


def _launch(command, log):
    os.setsid()
    write_to(log)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(SCRIPT.parents[1])}
    sys.argv = command
    accelerate_cli.main()


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def endless(tmp_path):
    """Launches a run that does not end by itself, and of which nothing is left after the test."""
    places = [("train", i) for i in range(60)] + [("test", i) for i in range(10)]
    names = [f"{split}/class {i % 5}/{i}.png" for split, i in places]
    run = {"dataset_name": write_images(tmp_path / "pictures", *names)}
    run |= {"max_train_steps": 100_000, "checkpointing_steps": 100_000}
    launches = []

    def start(*launcher):
        launches.append(Launch(tmp_path / "run", tmp_path / "log", *PLAIN, *launcher, **run))
        return launches[-1]

    yield start
    for each in launches:
        with suppress(ProcessLookupError):
            os.killpg(each.launcher.pid, signal.SIGKILL)
        each.launcher.join()


@pytest.mark.slow
def test_a_launcher_of_one_process(endless):
    """The trainer notices that it is gone, saves and ends."""
    launch = endless("--num_processes=1")
    pids, step = launch.stop(signal.SIGKILL)
    assert len(pids) == 1 and f"stopped by the end of its launcher after step {step}" in launch.text


@pytest.mark.slow
def test_a_launcher_of_two_processes(endless):
    launch = endless(f"--config_file={CONFIGS}/two_cpu_processes.yaml", "--main_process_port=0")
    pids, step = launch.stop(signal.SIGTERM)
    assert len(pids) == 2 and launch.launcher.exitcode != 0, launch.text
    facts = json.loads((launch.folder / f"checkpoints/step-{step}/facts.json").read_text())
    assert facts["num_processes"] == 2


def test_the_launch_that_starts_one_process_instead_of_two(monkeypatch):
    """accelerate gives it the variables of several, and a run that has them is refused."""
    started = []
    monkeypatch.setattr(launch_of_accelerate, "simple_launcher", started.append)
    words = ["--cpu", "--num_processes=2", *PLAIN, "train.py"]
    launch_command(launch_command_parser().parse_args(words))
    command, environment = prepare_simple_launcher_cmd_env(*started)
    assert command[-1] == "train.py"
    monkeypatch.setattr(os, "environ", environment)
    (fault,) = _process_faults(TrainConfig(), 1, started=1)
    assert "num_processes: found null; accelerate launch started one process, and set" in fault
    assert not list(_process_faults(TrainConfig(num_processes=1), 1, started=1))
    del environment["MASTER_PORT"]
    assert not list(_process_faults(TrainConfig(), 1, started=1))
