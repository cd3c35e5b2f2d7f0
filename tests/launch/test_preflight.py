"""What forbids a run is said at its start, all at once."""

import os
import re
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from forked import SHORT, Run, before_step, train
from safetensors.torch import load_file

import mtl_diffusion.launch.preflight as preflight
from mtl_diffusion.config import ConfigError, TrainConfig


def variables(**changed):
    """Sets variables of the environment; None removes one."""
    for name, value in changed.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def test_two_runs_cannot_share_a_folder(tmp_path):
    first = Run(tmp_path / "run", *SHORT, partial(before_step, 3, partial(time.sleep, 180)))
    first.wait_for(lambda: first.steps == [3])
    code, second = train(tmp_path / "run", *SHORT)
    assert code == 2 and "another run is writing there: wait or change it" in second.text
    code, dry = train(tmp_path / "run", *SHORT, dry_run="true")
    assert code == 0 and "parameters:" in dry.text
    first.processes[0].kill()
    assert first.wait() == -9
    assert train(tmp_path / "run", *SHORT)[0] == 0  # the lock went with it


def no_tensorboard():
    preflight.importlib.util.find_spec = lambda name: None


def test_all_start_up_faults_come_in_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    given = {"output_dir": folder, "report_to": "tensorboard", "num_processes": 4}
    code, run = train(tmp_path / "run", no_tensorboard, **given)
    assert code == 2 and "Traceback" not in run.text
    assert "3 faults in the configuration" in run.text
    assert "num_processes: found 4; 1 were started" in run.text
    assert "report_to: found 'tensorboard', which is not installed; pip install" in run.text
    assert "output_dir: found" in run.text and "Not a directory" in run.text
    code, run = train(tmp_path / "run", processes=2, num_processes=3, total_batch_size=4)
    assert code == [2, 2] and "num_processes: found 3; 2 were started" in run.text


def test_variables_of_a_launcher_that_cannot_be(tmp_path):
    code, run = train(tmp_path / "run", partial(variables, WORLD_SIZE="two"))
    assert code == 2 and "num_processes: the launcher's variables can't be used" in run.text
    (fault,) = preflight._process_faults(TrainConfig(), 1, started=2)
    assert "2 processes were started, and accelerate joins 1" in fault


FIELDS = ["mixed_precision", "compile", "per_device_batch_size", "num_processes"]
SETTINGS = ["MIXED_PRECISION", "DYNAMO_BACKEND", "GRADIENT_ACCUMULATION_STEPS", "USE_FSDP"]


@pytest.mark.parametrize(
    ("precision", "settings", "fields"),
    [
        ("no", [], []),
        ("no", ["no", "NO", "1", "false"], []),
        ("no", ["bf16", "inductor", "8", "true"], FIELDS),
        ("bf16", ["no"], []),  # the launcher's default
        ("bf16", ["bf16"], []),
        ("bf16", ["fp16"], FIELDS[:1]),
    ],
)
def test_what_a_launcher_asks_for_is_not_passed_over(precision, settings, fields):
    environ = {f"ACCELERATE_{k}": v for k, v in zip(SETTINGS, settings, strict=False)}
    lines = preflight._launcher_faults(TrainConfig(mixed_precision=precision), environ)
    starts = [line.partition(" to '")[0] for line in lines]
    wanted = zip(fields, environ, strict=False)
    assert starts == [f"{field}: the launcher sets {name}" for field, name in wanted]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has a device that is not a CPU")
def test_processes_without_gpus_train_together(tmp_path):
    """As `torchrun --nproc_per_node 2` starts them: nothing says that there is no GPU."""
    torchrun = partial(variables, ACCELERATE_USE_CPU=None)
    code, run = train(tmp_path / "run", *SHORT, torchrun, processes=2, max_train_steps=2)
    assert code == [0, 0] and run.steps == [2], run.text
    facts = (run.folder / "checkpoints" / "step-2" / "facts.json").read_text()
    assert '"num_processes": 2' in facts


@pytest.mark.parametrize("name", ["checkpoints", "logs", "validation", "pipeline"])
def test_every_folder_of_a_run_is_tried_before_it_trains(name, tmp_path):
    config = TrainConfig(output_dir=str(tmp_path / "run"))
    place = tmp_path / "run" / name
    assert not list(preflight._folder_faults(config)) and not place.exists()
    for make in (partial(place.write_text, ""), partial(place.symlink_to, tmp_path / "nowhere")):
        make()
        (fault,) = preflight._folder_faults(config)
        assert fault.startswith("output_dir: ") and f"run/{name}" in fault
        place.unlink()
    place.mkdir()
    assert not list(preflight._folder_faults(config))
    (place / "thesis.txt").write_text("mine")
    assert len(list(preflight._folder_faults(config))) == (name == "pipeline")


@pytest.mark.parametrize("source", ["./q/pipeline/", "link"])
def test_a_run_does_not_replace_the_model_that_it_starts_from(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q" / "pipeline").mkdir(parents=True)
    (tmp_path / "link").symlink_to("q/pipeline")
    given = {"pretrained_model_name_or_path": source}
    (fault,) = preflight._folder_faults(TrainConfig(output_dir="q", **given))
    assert f"which the export replaces, is {source}, the pretrained model; choose" in fault
    assert not list(preflight._folder_faults(TrainConfig(output_dir="other", **given)))


def full_disk():
    preflight.shutil.disk_usage = lambda path: SimpleNamespace(free=200_000)


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


def test_data_that_is_not_there_is_one_message_and_a_bug_a_traceback(tmp_path):
    code, run = train(tmp_path / "run", dataset_name="./nowhere")
    assert code == 2 and "Traceback" not in run.text and "nowhere" in run.text
    code, run = train(tmp_path / "bug", partial(before_step, 1, partial(int, "bug")))
    assert code == 1 and "Traceback" in run.text and "invalid literal for int()" in run.text


def test_a_precision_needs_a_device_that_has_it(monkeypatch):
    def faults(precision, device, has_it=False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
        config = TrainConfig(mixed_precision=precision)
        return list(preflight._precision_faults(config, torch.device(device), None))

    assert "mixed_precision: found bf16, which this cuda" in faults("bf16", "cuda")[0]
    assert not faults("bf16", "cuda", has_it=True) and not faults("bf16", "cpu")
    assert "mixed_precision: found fp16, which trains on CUDA GPUs" in faults("fp16", "cpu")[0]
    assert not faults("fp16", "cuda")


def test_a_run_that_publishes_starts_only_if_it_may(tmp_path):
    """conftest.py has turned the network off: there is no Hub to ask."""
    code, run = train(tmp_path / "run", push_to_hub="true", hub_model_id="me/model")
    assert code == 2 and "push_to_hub: me/model can't be written on the Hub" in run.text
    assert "Traceback" not in run.text and run.steps == []


def test_machines_that_do_not_share_the_folder_are_told(monkeypatch):
    from mtl_diffusion.checkpoints import resume

    monkeypatch.setattr(resume, "_find", lambda run: None)
    monkeypatch.setattr(resume, "from_all_processes", lambda lines: lines and ["0", "30"])
    with pytest.raises(ConfigError, match="where the processes see the steps 0, 30"):
        resume.restore(SimpleNamespace(config=TrainConfig()))
