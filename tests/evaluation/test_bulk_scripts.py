"""scripts/evaluate.py as it is run, by one process and by two."""

import json
from pathlib import Path

import pytest
import torch
from forked import call
from in_process import run_script
from safetensors.torch import load_file
from tables import load
from tiny import flags, write_shapes

from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.training import train_classifier
from mtl_diffusion.evaluation.features import feature_space
from mtl_diffusion.tools.tensors import weights_digest

ROOT = Path(__file__).parents[2]
TINY = {
    "num_images": 10,
    "reference_images": 40,
    "num_inference_steps": 2,
    "step_counts": [3],
    "inpaint_images": 3,
    "edit_images": 8,
    "num_strengths": 2,
    "baseline_guidance_scale": 3.0,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def work(build_pipe, tmp_path_factory):
    """A few shapes of 8 pixels, an untrained pipeline, and a classifier that hardly is."""
    work = tmp_path_factory.mktemp("work")
    data = load(write_shapes(work / "data", 200, 100), split="train", resolution=8)
    build_pipe(classes=data.class_names).save_pretrained(work / "pipeline")
    classifier = train_classifier(data, epochs=1, batch_size=50, width=4)
    classifier.save(work / "classifier", {"accuracy": 0.3, "n": 1000})
    return work


def evaluation(work, name, *more):
    """The arguments of evaluate.py."""
    return [
        *("--pipeline", work / "pipeline", "--classifier", work / "classifier"),
        *("--dataset_name", work / "data", "--output_dir", work / name, *flags(**TINY), *more),
    ]


def chunks_of(folder):
    return sorted((folder / "drawn").rglob("*.safetensors"))


def in_process(work, name, monkeypatch, *more):
    """evaluate.py without another start-up; returns its exit code, or its last words."""
    arguments = evaluation(work, name, "--device=cpu", *more)
    return run_script("evaluate.py", *arguments, monkeypatch=monkeypatch)


@pytest.mark.slow
def test_the_scorecard_is_the_same_by_one_process_and_by_two(
    work, build_pipe, tmp_path, monkeypatch
):
    assert in_process(work, "one", monkeypatch) == 0
    script = [ROOT / "scripts/evaluate.py", *evaluation(work, "two")]
    assert call(script, tmp_path / "log", processes=2) == [0, 0], (tmp_path / "log").read_text()
    one, two = (json.loads((work / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    drawn = [
        {
            path.relative_to(work / name): load_file(path)["values"]
            for path in chunks_of(work / name)
        }
        for name in ("one", "two")
    ]
    assert drawn[0].keys() == drawn[1].keys() and len(drawn[0]) > 20
    differing = 0
    for path, values in drawn[0].items():
        if values.dtype == torch.uint8:
            # A sum may round otherwise at another address, and then a pixel differs by 1 of 255.
            torch.testing.assert_close(values, drawn[1][path], rtol=0, atol=1)
            differing += (values != drawn[1][path]).sum()
        else:  # features
            torch.testing.assert_close(values, drawn[1][path], rtol=1e-3, atol=1e-4)
    assert differing <= 5
    assert one["generate"]["by_class_steps_3"]["evaluations"] == 3
    null = one["generate"]["null_class_steps_2"]
    assert null["evaluations"] == 2 and {"precision", "recall"} <= null.keys()
    assert "without_a_class_guidance_2_interval_0.28_2.9_steps_2" in one["summary"]["generate"]
    assert one["edit"]["edit"]["strength_0.5"]["evaluations"] == 2 * 2
    assert one["edit"]["whole_edit"]["strength_0.5"]["evaluations"] == 8 + 2 * 2 + 3 * 2
    assert {path.name for path in (work / "one").glob("*.png")} == {
        "quality_against_evaluations.png",
        "inpaint.png",
        "edit.png",
        "edit_curves.png",
    }
    assert one["edit"]["flowedit"]["class_found_0.5"]["n"] == 8
    assert one["inpaint"]["center"]["repaint"]["n"] == one["summary"]["inpaint"]["center"]["n"] == 3

    # Run again it draws nothing; and it can fail.
    before = {path: path.stat().st_mtime_ns for path in chunks_of(work / "one")}
    found = in_process(work, "one", monkeypatch, "--at_least", "0.999")
    assert "class accuracy is below 0.999 in generate" in found
    assert before == {path: path.stat().st_mtime_ns for path in chunks_of(work / "one")}


REFUSED = (
    (("--parts", "generate", "dance"), "parts are dance; this pipeline can have generate, inpaint"),
    (("--num_images=3", "--seed=x"), "num_images is 3: Input should be greater than or equal"),
)


@pytest.mark.parametrize(("more", "words"), REFUSED)
def test_a_part_that_cannot_be_had_is_refused(more, words, work, monkeypatch, capsys):
    assert in_process(work, "refused", monkeypatch, *more) == 2
    assert words in capsys.readouterr().err


def test_a_compiled_network_of_bfloat16_draws_nearly_the_same(work, monkeypatch):
    compiled = []

    def quickly(function):
        """Traces the network as ever, without the minute that its code takes to be built."""
        compiled.append(function)
        return compile_(function, backend="eager")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", quickly)
    found = []
    once = ("--parts", "generate", "--batch_size=10")
    for name, *more in (("plain",), ("fast", "--dtype=bfloat16", "--compile=true")):
        assert in_process(work, name, monkeypatch, *once, *more) == 0
        scores = json.loads((work / name / "metrics.json").read_text())
        assert scores["generate"]["by_class_steps_3"]["evaluations"] == 3
        images = [load_file(path)["values"] for path in chunks_of(work / name)]
        found.append(torch.cat([i.float() for i in images if i.dtype == torch.uint8]))
    assert len(compiled) == 1
    difference = (found[0] - found[1]).abs()
    assert 0 < difference.mean() < 2  # of 255


def test_the_space_of_a_classifier_is_its_last_but_one_layer(work, tmp_path):
    space, images = feature_space(str(work / "classifier")), torch.randint(256, (9, 3, 8, 8))
    features = space.features(images.to(torch.uint8), batch_size=4)
    model = Classifier.load(work / "classifier").model
    assert features.shape == (9, 16) and space.digest == weights_digest(model)
    expected = model(images / 127.5 - 1).logits
    torch.testing.assert_close(model.classifier(features), expected, atol=1e-4, rtol=1e-4)
    assert space.about == {"kind": "classifier", "accuracy": 0.3, "n": 1000}
    with pytest.raises(ValueError, match=r"feature_space: .*nowhere.*train_classifier"):
        feature_space(str(tmp_path / "nowhere"))
