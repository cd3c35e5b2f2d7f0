"""What forbids a run is said at its start, all at once. docs/reliability.md lists these tests."""

import json
import os
import re
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import (
    SHORT,
    Run,
    before_step,
    train,
)
from safetensors.torch import load_file

from mtl_diffusion.config import ConfigError, TrainConfig


def test_two_runs_cannot_share_a_folder(tmp_path):
    first = Run(tmp_path / "run", *SHORT, partial(before_step, 3, partial(time.sleep, 180)))
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
    os.environ["MASTER_PORT"] = "29500"


def an_address():
    """As in a pod of Kubernetes, where somebody else sets them."""
    os.environ |= {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "10.0.0.1"}


def settings_of_a_launcher():
    os.environ |= {
        "ACCELERATE_MIXED_PRECISION": "fp16",
        "ACCELERATE_DYNAMO_BACKEND": "inductor",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8",
        "ACCELERATE_USE_FSDP": "true",
    }


def no_size():
    os.environ["WORLD_SIZE"] = "two"


def no_tensorboard():
    import mtl_diffusion.launch.preflight as preflight

    preflight.importlib.util.find_spec = lambda name: None


def full_disk():
    import mtl_diffusion.launch.preflight as preflight

    usage = type("Usage", (), {"free": 200_000})
    preflight.shutil.disk_usage = lambda path: usage


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
    assert code == 2 and "num_processes: found null; accelerate launch started one" in run.text
    code, run = train(
        tmp_path / "run", *SHORT, told_of_two_processes, num_processes=1, max_train_steps=1
    )
    assert code == 0, run.text


def test_what_a_launcher_asks_for_is_not_passed_over(tmp_path):
    code, run = train(tmp_path / "run", settings_of_a_launcher)
    assert code == 2 and "4 faults" in run.text and "Traceback" not in run.text
    assert "mixed_precision: found 'no'; the launcher was given 'fp16'" in run.text
    assert "compile: found false; the launcher was given the dynamo backend 'induct" in run.text
    assert "per_device_batch_size: ACCELERATE_GRADIENT_ACCUMULATION_STEPS is '8': un" in run.text
    assert "num_processes: ACCELERATE_USE_FSDP is set" in run.text
    code, run = train(tmp_path / "run", no_size)
    assert code == 2 and "num_processes: the launcher's variables can't be used" in run.text


def test_what_a_launcher_may_ask_for():
    from mtl_diffusion.launch.preflight import _launcher_faults

    def faults(config, **variables):
        environ = {f"ACCELERATE_{name}": value for name, value in variables.items()}
        return list(_launcher_faults(config, environ))

    plain, bf16 = TrainConfig(), TrainConfig(mixed_precision="bf16")
    assert not faults(plain)
    asked = {"DYNAMO_BACKEND": "NO", "GRADIENT_ACCUMULATION_STEPS": "1", "USE_FSDP": "false"}
    assert not faults(plain, MIXED_PRECISION="no", **asked)
    assert not faults(bf16, MIXED_PRECISION="no")  # what accelerate launch says by default
    assert not faults(bf16, MIXED_PRECISION="bf16")
    assert len(faults(plain, MIXED_PRECISION="bf16")) == 1
    assert len(faults(bf16, MIXED_PRECISION="fp16")) == 1


def torchrun_without_gpus():
    """As `torchrun --nproc_per_node 2` starts them: nothing says that there is no GPU."""
    del os.environ["ACCELERATE_USE_CPU"]


def test_an_address_alone_is_no_launch_of_several(tmp_path):
    code, run = train(tmp_path / "run", *SHORT, an_address, max_train_steps=1)
    assert code == 0, run.text


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has a device that is not a CPU")
def test_processes_without_gpus_train_together(tmp_path):
    code, run = train(
        tmp_path / "run", *SHORT, torchrun_without_gpus, processes=2, max_train_steps=2
    )
    assert code == [0, 0] and run.steps == [2], run.text
    facts = json.loads((run.folder / "checkpoints" / "step-2" / "facts.json").read_text())
    assert facts["num_processes"] == 2


def test_processes_that_do_not_meet_are_refused():
    from mtl_diffusion.launch.preflight import _process_faults

    (fault,) = _process_faults(TrainConfig(), 1, started=2)
    assert "2 processes were started, and accelerate joins 1" in fault


def test_both_ranks_name_the_fault(tmp_path):
    code, run = train(tmp_path / "run", processes=2, num_processes=3, total_batch_size=4)
    assert code == [2, 2] and "num_processes: found 3; 2 were started" in run.text


@pytest.mark.parametrize("name", ["checkpoints", "logs", "validation", "pipeline", "published"])
def test_every_folder_of_a_run_is_tried_before_it_trains(name, tmp_path):
    from mtl_diffusion.launch.preflight import _folder_faults

    config = TrainConfig(output_dir=str(tmp_path / "run"))
    place = tmp_path / "run" / name
    assert not list(_folder_faults(config)) and not place.exists()
    place.write_text("")
    (fault,) = _folder_faults(config)
    assert fault.startswith("output_dir: ") and f"run/{name}" in fault
    place.unlink()
    place.symlink_to(tmp_path / "nowhere")
    (fault,) = _folder_faults(config)
    assert fault.startswith("output_dir: ") and f"run/{name}" in fault
    place.unlink()
    place.mkdir()
    assert not list(_folder_faults(config))
    (place / "thesis.txt").write_text("mine")
    assert len(list(_folder_faults(config))) == (name in ("pipeline", "published"))


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    from mtl_diffusion.launch.preflight import _folder_faults

    (tmp_path / "checkpoints").mkdir()
    touch = Path.touch

    def read_only(path, *arguments):
        if path.parent.name == "checkpoints":
            raise OSError(30, "Read-only file system")
        touch(path, *arguments)

    monkeypatch.setattr(Path, "touch", read_only)
    (fault,) = _folder_faults(TrainConfig(output_dir=str(tmp_path)))
    assert f"can't write to {tmp_path / 'checkpoints'}: [Errno 30] Read-only" in fault


def test_room_for_two_checkpoints_and_an_export(tmp_path):
    code, run = train(tmp_path / "run", full_disk)
    assert code == 2 and run.steps == [] and "Traceback" not in run.text
    needed = re.search(
        r"with 0 MB free; (\d+) MB are needed, a checkpoint being ([\d.]+) MB and the exported "
        r"pipeline ([\d.]+) MB",
        run.text,
    )
    assert needed, run.text
    _, run = train(tmp_path / "run", *SHORT, max_train_steps=1)
    files = (run.folder / "checkpoints" / "step-1").glob("*.safetensors")
    size = sum(t.nbytes for file in files for t in load_file(file).values())
    assert float(needed[2]) == pytest.approx(size / 1e6, abs=0.06)
    assert float(needed[1]) == pytest.approx(2 * float(needed[2]) + float(needed[3]), abs=0.6)


def test_data_that_is_not_there_is_one_message(tmp_path):
    code, run = train(tmp_path / "run", dataset_name="./nowhere")
    assert code == 2 and "Traceback" not in run.text and "nowhere" in run.text


def test_a_bug_in_training_keeps_its_traceback(tmp_path):
    code, run = train(tmp_path / "run", partial(before_step, 1, partial(int, "bug")))
    assert code == 1 and "Traceback" in run.text and "invalid literal for int()" in run.text


def test_bf16_needs_a_device_that_has_it(monkeypatch):
    from mtl_diffusion.launch.preflight import _precision_faults

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
    import mtl_diffusion.launch.preflight as preflight

    hub = Hub(**codes)
    monkeypatch.setattr(preflight, "HfApi", lambda: hub)
    monkeypatch.setattr(preflight, "check_right_to_write", hub.check_right_to_write)
    faults = list(preflight._hub_faults(TrainConfig(push_to_hub=True, hub_model_id="me/model")))
    assert len(faults) == (words is not None)
    if words:
        assert words in faults[0] and faults[0].startswith("push_to_hub: ")


def test_a_run_that_publishes_starts_only_if_it_may(tmp_path):
    """conftest.py has turned the network off: there is no Hub to ask."""
    code, run = train(tmp_path / "run", push_to_hub="true", hub_model_id="me/model")
    assert code == 2 and "push_to_hub: can't write me/model" in run.text
    assert "Traceback" not in run.text and run.steps == []


def test_machines_that_do_not_share_the_folder_are_told(monkeypatch, tmp_path):
    from mtl_diffusion.checkpoints import resume

    monkeypatch.setattr(resume, "_find", lambda run: None)
    monkeypatch.setattr(resume, "from_all_processes", lambda lines: lines and ["0", "30"])
    run = type("Run", (), {"config": TrainConfig()})
    with pytest.raises(ConfigError, match="where the processes see the steps 0, 30"):
        resume.restore(run)
