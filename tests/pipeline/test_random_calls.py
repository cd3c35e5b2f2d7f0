"""A thousand random calls, most of them wrong: each draws what it should, or names its fault."""

import numpy as np
import pytest
import torch
from drawing import SIZE, as_array
from PIL import Image

from mtl_diffusion.pipeline.pipeline import TASKS

CLASSES = {-1: None, 0: "cat", 1: "dog", 2: "ship"}
CALLS, NAN, HUGE = 1000, float("nan"), 10**400


def mirrored(array):
    """The same numbers, of strides that torch doesn't take."""
    return array[:, ::-1].copy()[:, ::-1]


def random_call(random):
    """Arguments for a random task: mostly those that it takes, one of them often wrong."""
    count = int(random.choice([1, 1, 2, 3]))
    pixels = random.random((count, SIZE, SIZE, 3), dtype=np.float32)
    bytes_ = (pixels * 255).astype(np.uint8)
    hole = random.random((count, SIZE, SIZE)) > random.random()
    hole[:, 0, 0], hole[:, 0, 1] = False, True
    tensor, pil = torch.from_numpy(pixels).movedim(-1, 1), [Image.fromarray(b) for b in bytes_]
    drawn = [Image.fromarray(h) for h in hole]
    strengths = random.random(count)
    scales = [0, 0.5, 1, 3.5, np.float32(2), 20], [1e30, 1e300, HUGE, -1, NAN, "2", True, [1], 1j]
    choices = {  # argument: right values, wrong values
        "task": ([*TASKS], ["draw", None, 3, ["edit"]]),
        "class_label": (
            [
                *("cat", 2, np.int64(1), torch.tensor(0), ["dog"] * count, [2] * count),
                *(np.arange(count), torch.zeros(count, dtype=torch.int64)),
            ],
            ["bird", 7, -1, True, 1.0, HUGE, [], [None, 9], b"cat", {"cat"}, np.array(["x"])],
        ),
        "image": (
            [
                *(pil, [p.convert("RGBA") for p in pil], list(pixels), pixels, tensor),
                *(list(tensor), pixels.astype(">f8"), tensor.half(), mirrored(pixels)),
            ],
            [
                *(pixels * 256, tensor - 1, tensor.to_sparse(), tensor.to("meta"), pixels[:, 1:]),
                *(pil[0].convert("F"), bytes_, pixels * NAN, [], "cat.png", [pil[0], None], 0),
            ],
        ),
        "mask_image": (
            [
                *(hole, list(hole), torch.from_numpy(hole)[:, None], hole.astype(">f4")[..., None]),
                *(drawn, [d.convert("RGB") for d in drawn], mirrored(hole)),
                list(hole * 0.2 + 0.4),  # grey is cut at one half
            ],
            [
                *(hole * 0.2, hole.astype(np.uint8), hole * NAN, hole[:, :4], [None], "hole.png"),
                *(drawn[0].convert("I"), drawn[0].convert("L").point(bool)),
                Image.new("LA", pil[0].size),
            ],
        ),
        "strength": (
            [0, 1, 0.5, list(strengths), torch.from_numpy(strengths)],
            [-0.1, 1.1, NAN, HUGE, "1", [], [[0.5]], strengths + 1, None, torch.ones(1).to("meta")],
        ),
        "guidance_scale": scales,
        "image_guidance_scale": scales,
        "guidance_interval": ([(0, 1), [0.1, float("inf")]], [(NAN, 1), (2, 1), 3, (), (HUGE, 1)]),
        "num_inference_steps": ([1, 2, np.int64(3)], [0, -1, 1.0, HUGE, None, True]),
        "num_images_per_prompt": ([1, 2, np.int8(3)], [0, -1, 1.0, HUGE, None, True]),
        "generator": ([torch.Generator()], [3, [], [torch.Generator()] * 17, [None]]),
        "latents": ([None], [torch.zeros(1, 3, 4, 4), np.zeros(3), torch.ones(3).to_sparse()]),
        "output_type": (["pil", "np", "pt", None], ["jpg", 3]),
        "callback_on_step_end": (
            [None, lambda *_: {}],
            [lambda *_: 3, 3, lambda *_: {"latents": 0}],
        ),
    }
    call = {name: right[random.integers(len(right))] for name, (right, _) in choices.items()}
    task = TASKS[call["task"]]
    for name in task.ARGUMENTS - task.required:  # what may be absent, and what has to be
        if name not in task.optional or random.random() < 0.5:
            del call[name]
    if random.random() < 0.6:
        name = random.choice([*choices])
        wrong = choices[name][1]
        call[name] = wrong[random.integers(len(wrong))]
    return call, pixels, hole


def expected_count(call):
    lengths = {"class_label": 0, "strength": 0, "image": 3, "mask_image": 2}  # axes of one entry
    values = [(call.get(name), axes) for name, axes in lengths.items()]
    batches = [v for v, axes in values if isinstance(v, list) or getattr(v, "ndim", 0) > axes]
    return max(map(len, batches), default=1) * int(call["num_images_per_prompt"])


def to_array(images, output_type):
    if output_type in ("pil", None):
        assert all(image.mode == "RGB" for image in images)
        return np.stack([as_array(image) for image in images])
    images = images.movedim(1, -1).numpy() if output_type == "pt" else images
    assert images.dtype == np.float32
    return images


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:mask_image")
def test_random_calls(pipe):
    random = np.random.default_rng(0)
    outcomes = {"drawn": 0, "refused": 0}
    for number in range(CALLS):
        call, pixels, hole = random_call(random)
        try:
            output = pipe(**call)
        except (ValueError, TypeError) as error:
            named = [name for name in [*call, "arguments"] if name in str(error)]
            assert named, (number, call, error)
            outcomes["refused"] += 1
            continue
        images = to_array(output.images, call["output_type"])
        assert images.shape == (expected_count(call), SIZE, SIZE, 3), (number, call)
        assert images.min() >= 0 and images.max() <= 1, (number, call)
        if "class_label" in call:
            labels = np.asarray(call["class_label"])
            labels = labels.repeat(len(images) // labels.size).tolist()
            assert output.class_labels == [CLASSES.get(label, label) for label in labels]
        if "mask_image" in call:
            sources, holes = (x.repeat(len(images) // len(x), axis=0) for x in (pixels, hole))
            # Half floats and PIL images hold the pixels up to their own rounding.
            assert np.abs(images - sources)[~holes].max() <= 1 / 255, (number, call)
        outcomes["drawn"] += 1
    assert min(outcomes.values()) > CALLS / 4, outcomes
