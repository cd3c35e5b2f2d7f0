"""scripts/sample.py: what it refuses, and that the corrected command then works."""

import re

import numpy as np
import pytest
from in_process import run_script
from PIL import Image

from mtl_diffusion.pictures.samples import SETTINGS


@pytest.fixture(scope="module")
def work(build_pipe, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    pipe = build_pipe(classes=("cat", "men's shoes", "7"))
    pipe.save_pretrained(work / "pipeline")
    for name, size in (("good", 8), ("other", 8), ("large", 40)):
        noise = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(noise).save(work / f"{name}.png")
    (work / "broken.png").write_bytes((work / "good.png").read_bytes()[:60])
    Image.new("L", (8, 8), 255).save(work / "mask.png")
    Image.new("RGBA", (8, 8)).save(work / "clear.png")
    return work


@pytest.fixture
def sample(work, monkeypatch, capsys, tmp_path):
    """Runs the script in `work`; returns its exit code and what it wrote to stderr."""
    monkeypatch.chdir(work)

    def run(*arguments, folder=tmp_path / "out"):
        fixed = ("--pipeline", "pipeline", "--num_inference_steps", "2", "--device", "cpu")
        given = (*fixed, "--output_dir", folder, *arguments)
        return run_script("sample.py", *given, monkeypatch=monkeypatch), capsys.readouterr().err

    return run


EDIT = ("--task", "edit", "--class_label", "cat", "--image")
MASKED = ("--task", "inpaint", "--image", "good.png", "--mask_image")
WRONG = {
    "class": (("--class_label", "dog"), r"class_label is 'dog'; .*this model knows \(cat"),
    "digit that is none": (("--class_label", "²"), "class_label is '²'"),
    "missing image": (
        (*EDIT, "good.png", "gone.png"),
        "image: gone.png .*No such file",
    ),
    "broken image": ((*EDIT, "broken.png"), "image: broken.png can't be used: image file is trunc"),
    "size": (
        (*EDIT, "good.png", "large.png"),
        "large.png .* 40x40 pixels; .*takes 8x8",
    ),
    "no mask": (("--task", "inpaint", "--image", "good.png"), "needs mask_image"),
    "clear mask": ((*MASKED, "clear.png"), "clear.png can't be used: .*put it on a black back"),
    "pipeline": (("--pipeline", "nowhere"), "nowhere"),
    "no images": (("--num_images", "0"), "num_images is 0; it must be a whole number from 1"),
    "not a number": (("--num_images", "many"), "argument --num_images: invalid int value"),
    "file in the way": (("--output_dir", "good.png"), r"good\.png"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_message_and_blocks_nothing(sample, name, tmp_path):
    arguments, message = WRONG[name]
    code, said = sample(*arguments)
    assert code == 2 and re.search(message, said), said
    assert "Traceback" not in said and said.count("sample: ") + said.count("sample.py: error") == 1
    assert not (tmp_path / "out").exists()


def test_the_corrected_command_works(sample, tmp_path):
    assert sample(*EDIT, "good.png", "large.png")[0] == 2
    code, said = sample(*EDIT, "good.png", "other.png", "--batch_size", "1")
    assert code == 0, said
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["00000.png", "00001.png", SETTINGS]
    # What is there stays, and other settings are refused.
    kept, lost = out / "00000.png", out / "00001.png"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert sample(*EDIT, "good.png", "other.png", "--batch_size", "1")[0] == 0
    assert lost.read_bytes() == content and kept.stat().st_mtime_ns == before
    code, said = sample(*EDIT, "good.png", "--batch_size", "1")
    assert code == 2 and "holds images of other settings (image)" in said


def test_classes_with_quotes_or_of_digits_and_one_mask_for_all(sample, tmp_path):
    assert sample("--class_label", "7", "men's shoes", "0")[0] == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    masked = (*MASKED, "mask.png", "--num_images", "3", "--output_dir", tmp_path / "masked")
    assert sample(*masked)[0] == 0
    assert len(list((tmp_path / "masked").glob("*.png"))) == 3
