"""A run that is killed and run again is the run that was not: the same bytes."""

import hashlib
import json
import shutil
from functools import partial

import pytest
import safetensors.torch
import torch
from forked import SHORT, STATE, STEPS, die, train
from kills import check_killed_and_run_again

from mtl_diffusion.checkpoints.store import CheckpointError, load, save

VARIANTS = {
    "one process": {},
    "accumulation": {"per_device_batch_size": 3},
    "bf16": {"mixed_precision": "bf16"},
    "no average, row-major, recomputed": {
        "use_ema": "false",
        "channels_last": "false",
        "gradient_checkpointing": "true",
    },
    "two processes": {"processes": 2},
    "two processes, accumulation, bf16": {
        "processes": 2,
        "per_device_batch_size": 3,
        "mixed_precision": "bf16",
        "total_batch_size": 9,  # shares of four and five, so of two microbatches each
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_run_again_is_byte_equal(variant, tmp_path):
    # Before any checkpoint; right after one; in mid-epoch; where an epoch ends; in the last step.
    kills = ((1, 0), (3, 0), (5, 3), (7, 3), (7, 6), (11, 6))
    check_killed_and_run_again(tmp_path, kills, **VARIANTS[variant])


def test_a_run_and_its_repetition_are_equal(reference, tmp_path):
    """Else the tests of this file would prove nothing; and another seed differs in each file."""
    assert train(tmp_path / "again", *SHORT)[1].state() == reference.state()
    other = train(tmp_path / "other", *SHORT, seed=1)[1].state()
    assert all(other[name] != reference.state()[name] for name in STATE)


# --- another number of processes ------------------------------------------------------------------


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


# --- what may change ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    code, run = train(tmp_path_factory.mktemp("halfway") / "run", *SHORT, partial(die, 7))
    assert code == -9
    return run


def refused(run, *faults, **arguments):
    code, run = train(run.folder, *faults, **arguments)
    assert code == 2 and "Traceback" not in run.text, run.text
    return run.text


def test_another_configuration_is_refused_field_by_field(halfway):
    text = refused(halfway, seed=5, learning_rate=0.5, dropout=0.2, train_split="train[:50]")
    assert "seed: the checkpoint has 0, this run has 5" in text
    assert "learning_rate: the checkpoint has 0.002, this run has 0.5" in text
    assert "dropout: the checkpoint has 0.1, this run has 0.2" in text
    assert 'train_split: the checkpoint has "train", this run has "train[:50]"' in text
    assert "train_split: the checkpoint has data of the fingerprint" in text
    assert "choose another output_dir" in text and "5 faults" not in text
    assert halfway.steps == [3, 6]


def other_images():
    import mtl_diffusion.data.source

    make = mtl_diffusion.data.source.shapes
    mtl_diffusion.data.source.shapes = partial(make, seed=1)


def test_other_data_under_the_same_name_is_refused(halfway):
    text = refused(halfway, other_images)
    assert "train_split: the checkpoint has data of the fingerprint" in text
    assert "validation_split: the checkpoint has data of the fingerprint" in text


def test_a_run_that_is_shorter_than_its_checkpoint_is_refused(halfway):
    text = refused(halfway, max_train_steps=5)
    assert "max_train_steps: found 5; the checkpoint has done 6 steps" in text


def shifted_words():
    import mtl_diffusion.training.run

    build = mtl_diffusion.training.run.build_tokenizer

    def shifted(tasks, *arguments):
        return build(["zoom", *list(tasks)], *arguments)

    mtl_diffusion.training.run.build_tokenizer = shifted


def test_shifted_tokens_are_refused_by_name(halfway):
    text = refused(halfway, shifted_words)
    assert "tasks: these tokens have another id in the checkpoint:" in text and "zoom" in text


def test_the_precision_may_change_and_an_old_checkpoint_has_no_younger_fields(halfway, tmp_path):
    folder = shutil.copytree(halfway.folder, tmp_path / "run")
    for facts in folder.glob("checkpoints/*/facts.json"):
        # As before there was a choice of optimisers, and of what else has a default since.
        table = json.loads(facts.read_text())
        for younger in ("lr_decay", "alignment_weight", "compile_mode"):
            del table["config"][younger]
        content = json.dumps(table).encode()
        facts.write_bytes(content)
        manifest = json.loads((facts.parent / "manifest.json").read_text())
        digest = hashlib.sha256(content).hexdigest()
        manifest["facts.json"] = {"size": len(content), "sha256": digest}
        (facts.parent / "manifest.json").write_text(json.dumps(manifest))
    code, run = train(folder, *SHORT, mixed_precision="bf16")
    assert code == 0, run.text
    assert "resuming after step 6" in run.text
    assert "mixed_precision was no and is bf16 now" in run.text


def older_library():
    import mtl_diffusion.checkpoints.resume

    versions = mtl_diffusion.checkpoints.resume._versions
    mtl_diffusion.checkpoints.resume._versions = lambda: versions() | {"torch": "1.0"}


def test_the_length_the_logging_and_the_libraries_may_change(tmp_path):
    code, run = train(tmp_path / "run", *SHORT, partial(die, 4))
    assert code == -9
    code, run = train(
        *(tmp_path / "run", *SHORT, older_library),
        max_train_steps=6,
        logging_steps=2,
        checkpointing_steps=2,
        validation_images=8,
    )
    assert code == 0 and run.steps == [4, 6], run.text
    assert "and this is 1.0: the rounding may differ" in run.text


def test_a_finished_run_can_be_made_longer(tmp_path):
    assert train(tmp_path / "run", *SHORT, max_train_steps=3)[0] == 0
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=5)
    assert code == 0 and run.steps == [3, 5]
    assert train(tmp_path / "run", *SHORT, max_train_steps=5)[0] == 0  # and run again in vain


MISSING = object()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("config", MISSING, "config: found nothing; must be a mapping"),
        ("config", [], "config: found []; must be a mapping"),
        ("words", MISSING, "words: found nothing; must be words with their ids"),
        ("words", {"<null>": "0"}, 'words: found {"<null>": "0"}; must be words with their ids'),
        ("words", {"<null>": 0}, "don't fit its configuration"),
        ("unet", "big", 'unet: found "big"; must be a mapping'),
        ("unet", {"sample_size": {}}, "don't fit its configuration"),
        ("scheduler", {"sigma_min": "low"}, "don't fit its configuration"),
        ("data", {"train": "abc"}, "the fingerprints of train and held_out"),
        ("data", {"train": 1, "held_out": 2}, "the fingerprints of train and held_out"),
        ("stream", [[0]], "stream: found [[0]]; must be null, or an epoch and a number of rows"),
        ("stream", 3, "stream: found 3; must be null, or"),
        ("num_processes", "two", 'num_processes: found "two"; must be 1 or more'),
        ("num_processes", 0, "num_processes: found 0; must be 1 or more"),
        ("versions", None, "versions: found null; must be libraries with their versions"),
    ],
)
def test_facts_of_another_form_are_named(halfway, name, value, words, tmp_path):
    """The sha256 is right: another program wrote them, or somebody changed both."""
    from mtl_diffusion.publishing.export import of_checkpoint

    checkpoint = load(halfway.folder / "checkpoints" / "step-6")
    checkpoint.facts[name] = value
    if value is MISSING:
        del checkpoint.facts[name]
    with pytest.raises(CheckpointError) as raised:
        of_checkpoint(save(tmp_path, checkpoint))
    assert words in str(raised.value)


def test_facts_of_another_form_are_refused(halfway, tmp_path):
    checkpoint = load(halfway.folder / "checkpoints" / "step-6")
    del checkpoint.facts["words"], checkpoint.facts["data"]
    save(tmp_path / "run" / "checkpoints", checkpoint)
    code, run = train(tmp_path / "run", *SHORT)
    assert code == 2 and "Traceback" not in run.text
    assert "the facts.json of step-6 can't be used:\n  words: found nothing" in run.text
    assert "data: found nothing; must be the fingerprints of train and held_out" in run.text


# --- which checkpoint -----------------------------------------------------------------------------


def test_a_damaged_one_is_passed_over_and_the_end_is_the_same(reference, tmp_path):
    assert train(tmp_path / "run", *SHORT, partial(die, 8))[0] == -9
    file = tmp_path / "run" / "checkpoints" / "step-6" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    code, run = train(tmp_path / "run", *SHORT)
    assert code == 0 and "resuming after step 3" in run.text
    assert f"passed over a checkpoint: {file} has" in run.text
    assert run.steps == [9, 12] and run.state() == reference.state()


def errors_of_the_disk(folder, processes):
    """Reading the newest checkpoint fails, on the last process."""
    from forked import rank

    import mtl_diffusion.checkpoints.store as module

    module.DELAYS = (0, 0)
    read = type(folder).read_bytes

    def fail(path):
        if path.parent == folder / "step-6" and rank() == processes - 1:
            raise OSError(5, "Input/output error")
        return read(path)

    type(folder).read_bytes = fail


@pytest.mark.parametrize("processes", [1, 2])
def test_one_that_cannot_be_read_is_neither_passed_over_nor_deleted(processes, tmp_path):
    common = {"processes": processes, "checkpoints_total_limit": 1}
    folder = tmp_path / "run"
    assert train(folder, *SHORT, max_train_steps=6, **common)[0] in (0, [0, 0])
    fault = partial(errors_of_the_disk, folder / "checkpoints", processes)
    code, run = train(folder, *SHORT, fault, **common)
    assert code in (2, [2, 2]) and "Traceback" not in run.text and run.steps == [6], run.text
    assert "step-6/manifest.json could not be read (Input/output error)" in run.text
    code, run = train(folder, *SHORT, **common)
    assert code in (0, [0, 0]) and "resuming after step 6" in run.text


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


def test_an_explicit_path_that_is_missing_or_damaged(halfway, tmp_path):
    asked = tmp_path / "step-3"
    code, run = train(tmp_path / "run", *SHORT, resume_from_checkpoint=asked)
    assert code == 2 and "Traceback" not in run.text
    assert f"{asked}/manifest.json can't be read: No such file or directory" in run.text
    asked.mkdir()
    for file in (halfway.folder / "checkpoints" / "step-3").iterdir():
        (asked / file.name).write_bytes(file.read_bytes())
    content = (asked / "ema.safetensors").read_bytes()
    (asked / "ema.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, run = train(tmp_path / "run", *SHORT, resume_from_checkpoint=asked)
    assert code == 2 and "Traceback" not in run.text
    assert f"{asked}/ema.safetensors has the sha256" in run.text and "the manifest has" in run.text
    assert run.steps == []


def test_none_refuses_a_folder_that_holds_a_run(halfway, tmp_path):
    text = refused(halfway, resume_from_checkpoint="none")
    assert "already holds a run: resume it with latest, or choose another output_dir" in text
    none = {"resume_from_checkpoint": "none", "max_train_steps": 1}
    assert train(tmp_path / "new", *SHORT, **none)[0] == 0


# --- around the checkpoint ------------------------------------------------------------------------


def die_in_validation():
    from forked import kill_myself

    import mtl_diffusion.training.reports

    mtl_diffusion.training.reports.held_out_loss = lambda *args, **kwargs: kill_myself()


def test_a_validation_that_a_kill_cut_off_is_caught_up(tmp_path):
    code, run = train(tmp_path / "run", die_in_validation, max_train_steps=2)
    assert code == -9 and run.steps == [2]
    code, run = train(tmp_path / "run", max_train_steps=2)
    assert code == 0, run.text
    assert (run.folder / "validation" / "step-2.json").exists()
    assert (run.folder / "pipeline" / "model_index.json").exists()


# --- a run of warmup_stable_decay that is given more steps goes on from before its decay ----------

PLATEAU = {
    "lr_scheduler": "warmup_stable_decay",
    "lr_decay": 0.5,
    "lr_warmup_steps": 2,
    "checkpoints_total_limit": 1,
}


def test_a_lengthened_run_is_the_longer_run(tmp_path):
    whole = train(tmp_path / "whole", *SHORT, max_train_steps=12, **PLATEAU)[1]
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=8, **PLATEAU)
    # The decay begins after step 4, and that checkpoint is kept beside the newest one.
    assert code == 0 and run.steps == [4, 8], run.text

    code, run = train(tmp_path / "run", *SHORT, partial(die, 5), max_train_steps=12, **PLATEAU)
    assert code == -9 and "it goes on from step 4, before the decay" in run.text
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=12, **PLATEAU)
    assert code == 0, run.text
    assert run.state(12) == whole.state(12)

    # Run again with its own length it has nothing left to do.
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=12, **PLATEAU)
    assert code == 0 and "resuming after step 12" in run.text


def test_without_a_checkpoint_from_before_the_decay_it_is_refused(tmp_path):
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=8, **PLATEAU)
    assert code == 0
    shutil.rmtree(run.folder / "checkpoints" / "step-4")
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=12, **PLATEAU)
    assert code == 2 and "max_train_steps: found 12; step 8 is in the decay" in run.text
    assert run.steps == [8]
