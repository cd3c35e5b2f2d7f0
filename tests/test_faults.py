"""What is done to a run, and what becomes of it. docs/reliability.md lists these tests."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import (
    ARGUMENTS,
    SCRIPT,
    SHORT,
    STEPS,
    Run,
    before_step,
    die,
    die_in_save,
    limit_before_step,
    no_export,
    poison_gradient,
    poison_loss,
    slow_steps,
    train,
)
from safetensors.torch import load_file

from mtl_diffusion.checkpoint import load_latest
from mtl_diffusion.config import ConfigError, TrainConfig
from mtl_diffusion.shapes import shapes

STOPPED = 75


def ends_like(reference, run, **arguments):
    """Run again, it ends with the bytes of the run that nothing interrupted."""
    code, run = train(run.folder, *SHORT, **arguments)
    assert code in (0, [0, 0]), run.text
    return run.state() == reference.state()


# --- stops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_finishes_the_step_and_saves_once(name, reference, tmp_path):
    """And the ones that follow it, every ten milliseconds until the process is gone, do no harm."""
    run = Run(tmp_path / "run", *SHORT, partial(slow_steps, 0.1))
    run.wait_for(lambda: run.steps == [3])
    while run.processes[0].is_alive():
        os.kill(run.pids[0], signal.Signals[name])
        time.sleep(0.01)
    assert run.wait() == STOPPED, run.text
    assert f"stopped by {name} after step {run.steps[-1]}; run again to go on" in run.text
    assert len(run.steps) == 2 and 3 < run.steps[-1] <= 6 and "Traceback" not in run.text
    assert ends_like(reference, run)


def signal_myself():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_while_it_saves(reference, tmp_path):
    run = Run(tmp_path / "run", *SHORT, signal_in_save, partial(slow_steps, 0.05))
    assert run.wait() == STOPPED and run.steps[0] == 3 and len(run.steps) == 2, run.text
    assert ends_like(reference, run)


def signal_in_save():
    import mtl_diffusion.checkpoint as module

    write = module._write

    def interrupted(path, content):
        if "step-3" in str(path):
            signal_myself()
        write(path, content)

    module._write = interrupted


def ignore_hangups():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_nohup_is_respected(tmp_path):
    run = Run(tmp_path / "run", *SHORT, ignore_hangups, partial(slow_steps, 0.05))
    run.wait_for(lambda: run.steps == [3])
    os.kill(run.pids[0], signal.SIGHUP)
    assert run.wait() == 0 and run.steps == [9, STEPS]


def test_one_signalled_rank_stops_both_at_the_same_step(tmp_path):
    whole = train(tmp_path / "whole", *SHORT, processes=2)[1]
    signalled = partial(before_step, 4, signal_myself, only_rank=1)
    code, run = train(tmp_path / "run", *SHORT, signalled, processes=2)
    assert code == [STOPPED, STOPPED] and run.steps == [3, 5], run.text
    assert "stopped by another process after step 5" in run.text
    assert ends_like(whole, run, processes=2)


def test_the_wall_clock_budget(reference, tmp_path):
    slow = partial(slow_steps, 0.2)
    started = time.monotonic()
    code, run = train(tmp_path / "run", *SHORT, slow, max_train_minutes=0.6 / 60)
    assert code == STOPPED and "stopped by max_train_minutes after step" in run.text
    assert time.monotonic() - started < 20
    assert ends_like(reference, run)


def reader_is_gone():
    """What is printed goes to a pipe that nobody reads, as after `2>&1 | tee` was interrupted."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def test_a_run_outlives_the_reader_of_its_output(reference, tmp_path):
    run = Run(tmp_path / "run", *SHORT, partial(before_step, 2, reader_is_gone))
    run.wait()  # its code may be Python's own, for a line that could not be printed at the end
    assert run.state() == reference.state()


# --- what is not finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(processes, tmp_path):
    last = processes - 1
    whole = train(tmp_path / "whole", *SHORT, processes=processes, per_device_batch_size=2)[1]
    poison = partial(poison_loss, 4, row=1, only_rank=last)
    arguments = {"processes": processes, "per_device_batch_size": 2}
    run = Run(tmp_path / "run", *SHORT, poison, **arguments)
    assert run.wait() in (1, [1, 1]) and run.steps == [3]
    messages = re.findall(r"FloatingPointError: (.*)", run.text)
    assert len(messages) == processes
    for message in messages:  # every rank knows where it was
        assert message.startswith("step 4: a loss or a gradient is not finite")
        assert re.search(rf"process {last}: (generate|inpaint|edit) at sigma [\d.]+: nan", message)
    checkpoint, _ = load_latest(run.folder / "checkpoints")
    for tensors in checkpoint.tensors.values():
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert ends_like(whole, run, **arguments)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_gradient_that_is_not_finite(processes, tmp_path):
    run = Run(tmp_path / "run", *SHORT, partial(poison_gradient, 5), processes=processes)
    assert run.wait() in (1, [1, 1]) and run.steps == [3]
    assert "step 5: a loss or a gradient is not finite" in run.text
    assert re.search(r"Worst losses: process 0: \w+ at sigma [\d.]+: \d", run.text)


def test_a_learning_rate_that_blows_up(tmp_path):
    code, run = train(tmp_path / "run", *SHORT, learning_rate=1e25, checkpointing_steps=1)
    assert code == 1 and "FloatingPointError: step" in run.text
    checkpoint, _ = load_latest(run.folder / "checkpoints")
    if checkpoint is not None:
        assert all(weight.isfinite().all() for weight in checkpoint.tensors["unet"].values())


# --- a disk that is full --------------------------------------------------------------------------


def unlimited_before_step(number):
    limit_before_step(number, -1)


def test_a_periodic_save_that_fails_is_logged_and_tried_again(reference, tmp_path):
    faults = (partial(limit_before_step, 4, 30_000), partial(unlimited_before_step, 7))
    code, run = train(tmp_path / "run", *SHORT, *faults)
    assert code == 0 and run.steps == [9, STEPS], run.text
    file = run.folder / "checkpoints" / ".writing-step-6" / "unet.safetensors"
    assert (
        f"the checkpoint of step 6 could not be written: [Errno 27] File too large: '{file}'. "
        "Older ones are untouched; training goes on, and the next one is tried"
    ) in run.text
    assert run.state() == reference.state()


def test_a_last_save_that_fails_ends_the_run(reference, tmp_path):
    code, run = train(tmp_path / "run", *SHORT, partial(limit_before_step, 4, 30_000))
    assert code == 1 and run.steps == [3]
    for step in (6, 9, 12):
        assert f"the checkpoint of step {step} could not be written: [Errno 27]" in run.text
    assert os.listdir(run.folder / "checkpoints") == ["step-3"]
    assert ends_like(reference, run)


def test_a_save_that_fails_at_a_stop_ends_all_ranks(tmp_path):
    full = partial(limit_before_step, 4, 30_000)
    stop = partial(before_step, 4, signal_myself)
    code, run = train(tmp_path / "run", *SHORT, full, stop, processes=2)
    assert code == [1, 1] and run.steps == [3], run.text
    assert "the main process could not write the checkpoint" in run.text


def curves_cannot_be_written():
    from accelerate import Accelerator

    def log(self, values, step=None):
        raise OSError(28, "No space left on device")

    Accelerator.log = log


def test_curves_and_pictures_that_cannot_be_written_cost_a_line(reference, tmp_path):
    code, run = train(tmp_path / "run", no_export, curves_cannot_be_written, logging_steps=5)
    assert code == 0 and run.state() == reference.state()
    assert "the curves could not be logged: [Errno 28] No space left on device" in run.text
    assert "the validation could not be written: [Errno 28]" in run.text


# --- start-up -------------------------------------------------------------------------------------


def test_two_runs_cannot_share_a_folder(tmp_path):
    first = Run(tmp_path / "run", *SHORT, partial(slow_steps, 0.3))
    first.wait_for(lambda: first.steps == [3])
    code, second = train(tmp_path / "run", *SHORT)
    assert code == 2 and "another run is writing there: wait or change it" in second.text
    code, dry = train(tmp_path / "run", *SHORT, dry_run="true")
    assert code == 0 and "parameters:" in dry.text
    first.processes[0].kill()
    assert first.wait() == -9
    assert train(tmp_path / "run", *SHORT, max_train_steps=6)[0] == 0  # the lock went with it


def told_of_two_processes():
    os.environ |= {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}


def no_tensorboard():
    import mtl_diffusion.startup as startup

    startup.importlib.util.find_spec = lambda name: None


def full_disk():
    import mtl_diffusion.startup as startup

    usage = type("Usage", (), {"free": 200_000})
    startup.shutil.disk_usage = lambda path: usage


def test_all_start_up_faults_come_in_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    run = Run(
        tmp_path / "run",
        no_tensorboard,
        output_dir=tmp_path / "file" / "run",
        report_to="tensorboard",
        num_processes=4,
    )
    assert run.wait() == 2 and "Traceback" not in run.text
    assert "3 faults in the configuration" in run.text
    assert "num_processes: found 4; 1 were started" in run.text
    assert "report_to: found 'tensorboard', which is not installed" in run.text
    assert "output_dir: found" in run.text and "Not a directory" in run.text


def test_a_launcher_that_starts_one_process_instead_of_two(tmp_path):
    code, run = train(tmp_path / "run", told_of_two_processes)
    assert code == 2 and "accelerate launch was told of several processes" in run.text
    code, run = train(
        tmp_path / "run", *SHORT, told_of_two_processes, num_processes=1, max_train_steps=1
    )
    assert code == 0, run.text


def test_both_ranks_name_the_fault(tmp_path):
    code, run = train(tmp_path / "run", processes=2, num_processes=3, total_batch_size=4)
    assert code == [2, 2] and "num_processes: found 3; 2 were started" in run.text


def test_room_for_two_checkpoints(tmp_path):
    code, run = train(tmp_path / "run", full_disk)
    assert code == 2 and run.steps == [] and "Traceback" not in run.text
    needed = re.search(
        r"with 0 MB free; (\d+) MB are needed, a checkpoint being ([\d.]+) MB", run.text
    )
    assert needed, run.text
    _, run = train(tmp_path / "run", *SHORT, max_train_steps=1)
    files = (run.folder / "checkpoints" / "step-1").glob("*.safetensors")
    size = sum(t.nbytes for file in files for t in load_file(file).values())
    assert float(needed[2]) == pytest.approx(size / 1e6, abs=0.06)


def test_data_that_is_not_there_is_one_message(tmp_path):
    code, run = train(tmp_path / "run", dataset_name="./nowhere")
    assert code == 2 and "Traceback" not in run.text and "nowhere" in run.text


def test_a_bug_in_training_keeps_its_traceback(tmp_path):
    code, run = train(tmp_path / "run", partial(before_step, 1, partial(int, "bug")))
    assert code == 1 and "Traceback" in run.text and "invalid literal for int()" in run.text


def test_bf16_needs_a_device_that_has_it(monkeypatch):
    from mtl_diffusion.startup import _precision_faults

    config = TrainConfig(mixed_precision="bf16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert "mixed_precision: found bf16" in next(_precision_faults(config, torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert not list(_precision_faults(config, torch.device("cuda")))
    assert not list(_precision_faults(config, torch.device("cpu")))


class Hub:
    """Answers of a Hub: HTTP codes of whoami, create_repo and check_right_to_write."""

    endpoint = "https://hub"

    def __init__(self, whoami=200, create=200, write=200):
        self.codes = {"whoami": whoami, "create": create, "write": write}
        self.asked = []

    def _answer(self, what):
        from huggingface_hub.errors import HfHubHTTPError

        self.asked.append(what)
        code = self.codes[what]
        if isinstance(code, Exception):
            raise code
        if code != 200:
            # Of its own kind: the client has changed its HTTP library more than once.
            response = SimpleNamespace(status_code=code, headers={}, request=None)
            raise HfHubHTTPError("no", response=response)

    def whoami(self):
        self._answer("whoami")

    def create_repo(self, repository, **options):
        self._answer("create")
        return type("Url", (), {"repo_id": repository})

    def check_right_to_write(self, repository):
        self._answer("write")


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ({}, None),
        ({"write": 404}, None),  # a Hub that doesn't know the question
        ({"whoami": 401}, "HTTP 401; log in with `hf auth login`"),
        ({"create": 403}, "HTTP 403; use a token that may write there"),
        ({"write": 403}, "HTTP 403; use a token that may write there"),
        ({"create": 500}, "HTTP 500; try again later"),
        ({"whoami": ConnectionError("no\nroute")}, "can't write me/model on https://hub: no route"),
    ],
)
def test_the_hub_is_asked_before_training(codes, words, monkeypatch):
    import mtl_diffusion.startup as startup

    hub = Hub(**codes)
    monkeypatch.setattr(startup, "HfApi", lambda: hub)
    monkeypatch.setattr(startup, "check_right_to_write", hub.check_right_to_write)
    faults = list(startup._hub_faults(TrainConfig(push_to_hub=True, hub_model_id="me/model")))
    assert len(faults) == (words is not None)
    if words:
        assert words in faults[0] and faults[0].startswith("push_to_hub: ")


def test_a_run_that_publishes_starts_only_if_it_may(tmp_path):
    """conftest.py has turned the network off: there is no Hub to ask."""
    code, run = train(tmp_path / "run", push_to_hub="true", hub_model_id="me/model")
    assert code == 2 and "push_to_hub: can't write me/model" in run.text
    assert "Traceback" not in run.text and run.steps == []


def test_machines_that_do_not_share_the_folder_are_told(monkeypatch, tmp_path):
    from mtl_diffusion import resume

    monkeypatch.setattr(resume, "_find", lambda run: None)
    monkeypatch.setattr(resume, "from_all_processes", lambda lines: ["0", "30"])
    run = type("Run", (), {"config": TrainConfig()})
    with pytest.raises(ConfigError, match="where the processes see the steps 0, 30"):
        resume.restore(run)


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_at_each_operation_of_a_save_of_a_run(reference, tmp_path):
    """Of its third checkpoint, which rotates the first away; the run ends the same every time."""
    counter, kills = tmp_path / "operations", 0
    for event in range(100):
        folder = tmp_path / f"run-{event}"
        code, run = train(folder, *SHORT, partial(die_in_save, 9, event, counter))
        if code == 0:
            break
        assert code == -9 and run.steps in ([3, 6], [3, 6, 9], [6, 9])
        newest = run.steps[-1]
        code, run = train(folder, *SHORT)
        assert code == 0 and f"resuming after step {newest}" in run.text
        assert "passed over" not in run.text and run.state() == reference.state()
        kills += 1
    assert kills == json.loads(counter.read_text()) and kills > 16


def record_steps(path):
    import mtl_diffusion.train

    train_step = mtl_diffusion.train.train_step

    def step(run, index, meter):
        with open(path, "a") as file:
            file.write(f"{index}\n")
        train_step(run, index, meter)

    mtl_diffusion.train.train_step = step


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """In a start, a step or a save; each costs the steps since the last save, and nothing else."""
    long = {"max_train_steps": 500, "checkpointing_steps": 3}
    code, whole = train(tmp_path / "whole", *SHORT, **long)
    assert code == 0
    draw, where = random.Random(0), {"start": 0, "step": 0, "save": 0}
    steps = tmp_path / "steps"
    for kill in range(36):
        steps.write_text("")
        run = Run(tmp_path / "run", *SHORT, partial(record_steps, steps), **long)
        process = run.processes[0]
        if kill % 9 == 0:
            process.join(draw.uniform(0, 0.4))  # in the start, as a rule
        else:
            count = draw.randint(1, 20)  # so that a slow machine goes as far as a fast one
            while len(steps.read_text().splitlines()) < count and process.is_alive():
                time.sleep(0.002)
            process.join(draw.uniform(0, 0.05))
        process.kill()
        assert run.wait() == -9, run.text
        begun = [int(line) for line in steps.read_text().splitlines()]
        newest, skipped = load_latest(run.folder / "checkpoints")
        assert not skipped
        if begun:  # step k is begun when k are done: the last that was due may be on its way
            assert begun == list(range(begun[0], begun[-1] + 1))
            least = max(begun[0], (begun[-1] // 3 - 1) * 3)
            assert least <= (newest.step if newest else 0) <= begun[-1] + 1
        written = any((run.folder / "checkpoints").glob(".writing-*"))
        where["save" if written else "step" if begun else "start"] += 1
    code, run = train(tmp_path / "run", *SHORT, **long)
    assert code == 0 and run.state(500) == whole.state(500)
    print(f"36 kills, the last at step {begun[-1]}: {where}")
    assert where["step"] + where["save"] >= 30


# --- several processes, and the launcher ----------------------------------------------------------


def test_a_rank_that_dies_ends_the_other(tmp_path):
    """Without a launcher; with gloo, whose connection breaks."""
    run = Run(tmp_path / "run", *SHORT, partial(die, 4, only_rank=1), processes=2)
    run.processes[1].join(60)
    died = time.monotonic()
    codes = run.wait()
    print(f"the other ended {time.monotonic() - died:.1f} s later")
    assert codes[1] == -9 and codes[0] not in (0, STOPPED) and time.monotonic() - died < 30
    assert run.steps == [3]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Sixty images in folders."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, rows in shapes(8, num_train=60, num_test=10).items():
        for i, row in enumerate(rows):
            place = folder / split / str(row["label"])
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{i}.png")
    return folder


def heed_interrupts():
    """In the background of a shell the tests ignore SIGINT, and what they start would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Launch:
    """A real `accelerate launch`, in a session of its own."""

    def __init__(self, folder, pictures, *launcher, **arguments):
        given = ARGUMENTS | {
            "output_dir": folder,
            "dataset_name": pictures,
            "validation_split": "test",
            "max_train_steps": 100_000,
            "checkpointing_steps": 100_000,
        }
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", *launcher]
        command += [SCRIPT, *(f"--{name}={value}" for name, value in (given | arguments).items())]
        self.folder, self.log = Path(folder), Path(f"{folder}.log")
        with open(self.log, "w") as log:
            self.launcher = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=log,
                env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )

    @property
    def text(self):
        return self.log.read_text()

    @property
    def steps(self):
        return [int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*")]

    def trainers(self):
        """Ids of the processes that train, by rank."""
        path = f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children"
        return [
            int(pid)
            for pid in Path(path).read_text().split()
            if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def wait_for_training(self):
        deadline = time.monotonic() + 120
        while not re.search(r"[1-9]\d*\.?\d*k?/800k", self.text):
            assert self.launcher.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.05)
        return self.trainers()

    def wait_for_end(self, pids, seconds=60):
        """Seconds until none of the processes is left."""
        started = time.monotonic()
        while any(running(pid) for pid in pids) or self.launcher.poll() is None:
            if time.monotonic() - started > seconds:
                os.killpg(self.launcher.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s: {self.text}")
            time.sleep(0.02)
        return time.monotonic() - started


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TWO = ("--multi_gpu", "--num_processes=2", "--main_process_port=0")


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_one_process_under_a_launcher_that_dies(number, pictures, tmp_path):
    """The launcher is gone at once; the trainer notices, saves and ends. SIGINT goes to both."""
    launch = Launch(tmp_path / "run", pictures, "--num_processes=1")
    pids = launch.wait_for_training()
    assert len(pids) == 1
    if number == "SIGINT":
        os.killpg(launch.launcher.pid, signal.SIGINT)
    else:
        launch.launcher.send_signal(signal.Signals[number])
    seconds = launch.wait_for_end(pids)
    print(f"ended {seconds:.1f} s after {number}")
    assert seconds < 20 and len(launch.steps) == 1
    reason = "SIGINT" if number == "SIGINT" else "the end of its launcher"
    assert f"stopped by {reason} after step {launch.steps[0]}" in launch.text
    assert load_latest(launch.folder / "checkpoints")[0].step == launch.steps[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_two_processes_under_a_launcher_that_is_told_to_stop(number, pictures, tmp_path):
    launch = Launch(tmp_path / "run", pictures, *TWO)
    pids = launch.wait_for_training()
    assert len(pids) == 2
    if number == "SIGINT":
        os.killpg(launch.launcher.pid, signal.SIGINT)
    else:
        launch.launcher.send_signal(signal.Signals[number])
    seconds = launch.wait_for_end(pids)
    print(f"ended {seconds:.1f} s after {number}, the launcher with {launch.launcher.returncode}")
    assert seconds < 30 and launch.launcher.returncode != 0 and len(launch.steps) == 1, launch.text
    assert load_latest(launch.folder / "checkpoints")[0].step == launch.steps[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_launch(rank, pictures, tmp_path):
    launch = Launch(tmp_path / "run", pictures, *TWO)
    pids = launch.wait_for_training()
    os.kill(pids[rank], signal.SIGKILL)
    seconds = launch.wait_for_end(pids)
    print(f"ended {seconds:.1f} s after rank {rank}, with {launch.launcher.returncode}")
    assert seconds < 45 and launch.launcher.returncode not in (0, None)


@pytest.mark.slow
def test_the_launch_that_starts_one_process_instead_of_two(pictures, tmp_path):
    launch = Launch(tmp_path / "run", pictures, "--cpu", "--num_processes=2")
    assert launch.launcher.wait(120) != 0
    assert "accelerate launch was told of several processes and started one" in launch.text
    assert not launch.steps
