"""A run that is killed and run again is the run that was not: the same bytes."""

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from forked import SHORT, STATE, STEPS, check_killed_and_run_again, die, train

from mtl_diffusion.checkpoints.store import load, save

VARIANTS = {
    "one process": {},
    "accumulation, balanced classes": {"per_device_batch_size": 3, "balance_classes": "true"},
    "bf16, no average, recomputed": {
        "mixed_precision": "bf16",
        "use_ema": "false",
        "gradient_checkpointing": "true",
    },
    "two processes, accumulation, bf16": {
        "processes": 2,
        "per_device_batch_size": 3,
        "mixed_precision": "bf16",
        "augmentation": 0.4,
        "total_batch_size": 9,  # shares of four and five, so of two microbatches each
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_run_again_is_byte_equal(variant, tmp_path):
    # Before any checkpoint; right after one; in mid-epoch; where an epoch ends; in the last step.
    kills = ((1, 0), (3, 0), (5, 3), (7, 3), (7, 6), (11, 6))
    kills = kills if variant == "one process" else kills[1:4]
    check_killed_and_run_again(tmp_path, kills, **VARIANTS[variant])


def test_a_run_and_its_repetition_are_equal(reference, tmp_path):
    """Else the tests of this file would prove nothing; and another seed differs in each file."""
    assert train(tmp_path / "again", *SHORT)[1].state() == reference.state()
    other = train(tmp_path / "other", *SHORT, seed=1)[1].state()
    assert all(other[name] != reference.state()[name] for name in STATE)


def test_one_process_continues_two(tmp_path):
    """The data and the noise are the same, so only the rounding differs where dropout is 0."""
    whole = train(tmp_path / "whole", *SHORT, dropout=0.0)[1]
    code, run = train(tmp_path / "run", *SHORT, partial(die, 7), dropout=0.0, processes=2)
    assert code == [-9, -9], run.text
    code, run = train(tmp_path / "run", *SHORT, dropout=0.0)
    assert code == 0
    assert "the checkpoint is of 2 processes and this run has 1" in run.text
    path = f"checkpoints/step-{STEPS}/unet.safetensors"
    one, other = (safetensors.torch.load_file(r.folder / path) for r in (whole, run))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=2e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    code, run = train(tmp_path_factory.mktemp("halfway") / "run", *SHORT, partial(die, 7))
    assert code == -9
    return run


def refused(run, *faults, **arguments):
    code, run = train(run.folder, *faults, **arguments)
    assert code == 2 and "Traceback" not in run.text, run.text
    return run.text


def other_images():
    import mtl_diffusion.data.source as source

    source.shapes = partial(source.shapes, seed=1)


def other_order():
    import mtl_diffusion.training.run as module

    build = module.build_tokenizer
    module.build_tokenizer = lambda tasks, classes, *rest: build(tasks, classes[::-1], *rest)


def test_what_may_not_change_is_refused_field_by_field(halfway):
    fields = {"seed": 5, "learning_rate": 0.5, "train_split": "train[:50]"}
    text = refused(halfway, other_images, other_order, **fields)
    for words in (
        "seed: the checkpoint has 0, this run has 5",
        "learning_rate: the checkpoint has 0.002, this run has 0.5",
        'train_split: the checkpoint has "train", this run has "train[:50]"',
        "train_split: the checkpoint has data of the fingerprint",
        "validation_split: the checkpoint has data of the fingerprint",
        "label_column: these tokens have another id in the checkpoint: <class:cross>, <class:disc>",
        "choose another output_dir",
    ):
        assert words in text, words
    assert halfway.steps == [3, 6]


def another_machine():
    """Another version of torch, and twice as many threads."""
    import torch

    import mtl_diffusion.checkpoints.resume as resume

    versions = resume._versions
    resume._versions = lambda run: versions(run) | {"torch": "1.0"}
    torch.get_num_threads = lambda: 2


def test_the_logging_the_precision_and_the_machine_may_change(halfway, tmp_path):
    folder = shutil.copytree(halfway.folder, tmp_path / "run")
    every = {"logging_steps": 2, "checkpointing_steps": 2, "validation_images": 8}
    code, run = train(folder, *SHORT, another_machine, **every, mixed_precision="bf16")
    assert code == 0 and run.steps == [10, 12], run.text
    assert " and this run has 1.0: the rounding differs" in run.text
    assert "is of hardware 1 thread of" in run.text and "this run has 2 threads of" in run.text
    assert "mixed_precision no and this run has bf16: the rounding differs" in run.text


def test_a_checkpoint_of_version_0_1_is_continued(halfway, tmp_path):
    old = load(halfway.folder / "checkpoints" / "step-6")
    for younger in ("balance_classes", "image_mode", "mask_column", "edit_pairs"):
        del old.facts["config"][younger]
    gone = {"ema_half_life": 0.05, "task_weights": None, "gradient_aggregation": "sum"}
    gone |= {"token_paths": "both"}
    old.facts["config"] |= gone | {"perceptual_weight": 0.0, "perceptual_images": 0.15}
    for younger in ("first_length", "loss_scale", "stream_order"):
        del old.facts[younger]
    del old.facts["versions"]["hardware"]
    save(tmp_path / "run" / "checkpoints", old)
    code, run = train(tmp_path / "run", *SHORT)
    assert code == 0 and "resuming after step 6" in run.text, run.text


def test_facts_of_another_program_are_refused(halfway, tmp_path):
    """Their sha256 is right."""
    checkpoint = load(halfway.folder / "checkpoints" / "step-6")
    del checkpoint.facts["words"], checkpoint.facts["data"]
    save(tmp_path / "run" / "checkpoints", checkpoint)
    text = refused(SimpleNamespace(folder=tmp_path / "run"), *SHORT)
    assert "the facts.json of step-6 can't be used: it has no data, words" in text


def test_a_damaged_one_is_passed_over_and_the_end_is_the_same(reference, tmp_path):
    assert train(tmp_path / "run", *SHORT, partial(die, 8))[0] == -9
    file = tmp_path / "run" / "checkpoints" / "step-6" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    code, run = train(tmp_path / "run", *SHORT)
    assert code == 0 and "resuming after step 3" in run.text
    assert f"passed over a checkpoint: {file} has" in run.text
    assert run.steps == [9, 12] and run.state() == reference.state()


def errors_of_the_disk(folder):
    """Reading the newest checkpoint fails, on the second process."""
    from forked import rank

    import mtl_diffusion.checkpoints.store as module

    module.DELAYS = (0, 0)
    read = type(folder).read_bytes

    def fail(path):
        if path.parent == folder / "step-6" and rank() == 1:
            raise OSError(5, "Input/output error")
        return read(path)

    type(folder).read_bytes = fail


def test_one_that_cannot_be_read_is_neither_passed_over_nor_deleted(tmp_path):
    common = {"processes": 2, "checkpoints_total_limit": 1}
    folder = tmp_path / "run"
    assert train(folder, *SHORT, partial(die, 7), **common)[0] == [-9, -9]
    fault = partial(errors_of_the_disk, folder / "checkpoints")
    code, run = train(folder, *SHORT, fault, **common)
    assert code == [2, 2] and "Traceback" not in run.text and run.steps == [6], run.text
    assert "step-6/manifest.json could not be read (Input/output error)" in run.text
    code, run = train(folder, *SHORT, **common)
    assert code == [0, 0] and "resuming after step 6" in run.text


def test_if_all_are_damaged_nothing_is_started_anew(tmp_path):
    code, run = train(tmp_path / "run", *SHORT, partial(die, 4))
    assert code == -9
    (run.folder / "checkpoints" / "step-3" / "unet.safetensors").unlink()
    text = refused(run)
    assert "has no complete checkpoint" in text and "unet.safetensors can't be read" in text


def test_an_explicit_path(reference, tmp_path):
    """It branches off into a folder of its own, and survives a kill like any run."""
    assert train(tmp_path / "run", *SHORT, partial(die, 7))[0] == -9
    asked = tmp_path / "run" / "checkpoints" / "step-3"
    branch = {"resume_from_checkpoint": asked}
    code, run = train(tmp_path / "branch", *SHORT, partial(die, 10), **branch)
    assert code == -9 and "resuming after step 3" in run.text and run.steps == [6, 9]
    code, run = train(tmp_path / "branch", *SHORT, **branch)
    assert code == 0 and "resuming after step 9" in run.text
    assert run.state() == reference.state()
    # Going back inside a folder would leave two histories in it.
    code, run = train(tmp_path / "run", *SHORT, **branch)
    assert code == 2 and "already holds step 6: resume it with latest" in run.text


def test_a_path_without_a_checkpoint_and_a_folder_with_a_run_are_refused(halfway, tmp_path):
    asked = {"resume_from_checkpoint": tmp_path / "step-3"}
    text = refused(SimpleNamespace(folder=tmp_path / "run"), **asked)
    assert f"{tmp_path}/step-3/manifest.json can't be read: No such file or directory" in text
    text = refused(halfway, resume_from_checkpoint="none")
    assert "already holds a run: resume it with latest, or choose another output_dir" in text
    none = {"resume_from_checkpoint": "none", "max_train_steps": 1}
    assert train(tmp_path / "new", *SHORT, **none)[0] == 0


def die_in_validation():
    from forked import kill_myself

    import mtl_diffusion.training.validation

    mtl_diffusion.training.validation.held_out_loss = lambda *args, **kwargs: kill_myself()


def test_a_validation_that_a_kill_cut_off_is_caught_up(tmp_path):
    code, run = train(tmp_path / "run", die_in_validation, max_train_steps=2)
    assert code == -9 and run.steps == [2]
    code, run = train(tmp_path / "run", max_train_steps=2)
    assert code == 0, run.text
    assert (run.folder / "validation" / "step-2.json").exists()
    assert (run.folder / "pipeline" / "model_index.json").exists()


# --- a run that is given another length -----------------------------------------------------------

PLATEAU = {"lr_scheduler": "warmup_stable_decay", "lr_decay": 0.5, "lr_warmup_steps": 0.25}


@pytest.mark.parametrize(("first", "second", "since"), [(8, 12, 4), (12, 8, 3)])
def test_a_run_of_another_length_is_the_run_of_that_length(first, second, since, tmp_path):
    """It goes on from before the decays of both, and keeps the warm-up of its first length."""
    warmup = PLATEAU | {"lr_warmup_steps": first // 4}
    whole = train(tmp_path / "whole", *SHORT, max_train_steps=second, **warmup)[1]
    limit = {"checkpoints_total_limit": 1 if first < second else "null"}
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=first, **PLATEAU, **limit)
    # The decay begins after half of the run, and that checkpoint is kept beside the newest one.
    assert code == 0 and first // 2 in run.steps and run.steps[-1] == first, run.text

    again = PLATEAU | {"max_train_steps": second, "checkpoints_total_limit": "null"}
    code, run = train(tmp_path / "run", *SHORT, partial(die, since + 1), **again)
    assert code == -9, run.text
    assert f"has {second} now: it goes on from step {since}, before the decay" in run.text
    assert f"it keeps its warm-up of {first // 4} steps" in run.text
    code, run = train(tmp_path / "run", *SHORT, **again)
    assert code == 0, run.text
    assert run.state(second) == whole.state(second)

    # Run again with its own length it has nothing left to do.
    code, run = train(tmp_path / "run", *SHORT, **again)
    assert code == 0 and f"resuming after step {second}" in run.text


def test_without_a_checkpoint_from_before_the_decay_it_is_refused(tmp_path):
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=12, **PLATEAU)
    assert code == 0 and run.steps == [6, 9, 12]
    text = refused(run, max_train_steps=8, **PLATEAU)
    assert "max_train_steps: found 8;" in text and "no checkpoint from step 4 or before" in text
    assert "it can have 12 steps or more" in text
    shutil.rmtree(run.folder / "checkpoints" / "step-6")
    text = refused(run, max_train_steps=24, **PLATEAU)
    assert "no checkpoint from step 6 or before" in text and "it can have 12 steps;" in text
    named = {"resume_from_checkpoint": run.folder / "checkpoints" / "step-9"}
    code, branch = train(tmp_path / "branch", *SHORT, **named, max_train_steps=24, **PLATEAU)
    assert code == 2 and "step-9 has no checkpoint from step 6 or before" in branch.text
    assert run.steps == [9, 12]


def test_a_cosine_has_one_length(halfway):
    text = refused(halfway, max_train_steps=24)
    assert "max_train_steps: found 24; " in text and "of a run of 12 steps" in text
    assert "Give 12; or train its exported pipeline further" in text
    assert halfway.steps == [3, 6]


def test_a_constant_rate_goes_on_from_anywhere(tmp_path):
    constant = {"lr_scheduler": "constant", "lr_warmup_steps": 2}
    assert train(tmp_path / "run", *SHORT, max_train_steps=3, **constant)[0] == 0
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=5, **constant)
    assert code == 0 and run.steps == [3, 5] and "resuming after step 3" in run.text
