"""diffusers' own suite over each task; `test_conformance.py` runs it, in a process of its own.

    DIFFUSERS_CHECKOUT=diffusers python -m pytest -c /dev/null tests/tools/conformance.py -rs

The suite looks pipelines up by name in `diffusers.pipelines`, so ours is put there.
"""

import os
import sys
import unittest

import diffusers
import torch
from tiny import MODEL

sys.path.insert(0, os.environ["DIFFUSERS_CHECKOUT"])

from tests.pipelines.test_pipelines_common import PipelineLatentTesterMixin, PipelineTesterMixin

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
from mtl_diffusion.training.model import build_scheduler, build_tokenizer, build_unet

diffusers.pipelines.MultiTaskPipeline = MultiTaskPipeline

# Of parts that this pipeline doesn't have. All but the first would pass and do nothing.
LEFT_OUT = {
    "test_multi_vae": "left out: the pipeline has no VAE to exchange",
    "test_latents_input": "left out: no task takes a latent in place of an image",
    "test_encode_prompt_works_in_isolation": "left out: the pipeline has no encode_prompt",
    "test_save_load_optional_components": "left out: no component is optional",
    "test_StableDiffusionMixin_component": "left out: the pipeline is no StableDiffusionMixin",
}


class Suite(PipelineTesterMixin):
    pipeline_class = MultiTaskPipeline
    batch_params = frozenset({"class_label"})
    callback_cfg_params = frozenset()
    test_layerwise_casting = True
    test_group_offloading = True
    task: str

    @property
    def params(self):
        return TASKS[self.task].required | TASKS[self.task].optional

    def get_dummy_components(self):
        config = TrainConfig(**MODEL)
        tokenizer = build_tokenizer(tuple(TASKS), ("cat", "dog"), strength_levels=3, reserved=2)
        torch.manual_seed(0)
        unet = build_unet(config, len(tokenizer.get_vocab())).eval()
        torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
        return {"unet": unet, "tokenizer": tokenizer, "scheduler": build_scheduler(config)}

    def get_dummy_inputs(self, device, seed=0):
        size, required = MODEL["resolution"], TASKS[self.task].required
        given = {
            "image": torch.linspace(0, 1, 3 * size * size).view(1, 3, size, size),
            "mask_image": torch.eye(size)[None, None],
        }
        return {
            "task": self.task,
            "generator": torch.Generator(device).manual_seed(seed),
            "num_inference_steps": 2,
            "output_type": "np",
            "class_label": "cat",
            **{name: value for name, value in given.items() if name in required},
        }


class FromImage(PipelineLatentTesterMixin):
    """More tests, for the tasks that take an image. None takes a latent in place of one."""

    image_params = frozenset({"image", "mask_image"})
    image_latents_params = frozenset()


for name, reason in LEFT_OUT.items():
    skipped = unittest.skip(reason)(lambda self: None)
    setattr(Suite if hasattr(Suite, name) else FromImage, name, skipped)
for name, task in TASKS.items():
    bases = (Suite, FromImage) if "image" in task.required else (Suite,)
    title = f"{name.capitalize()}Test"
    globals()[title] = type(title, (*bases, unittest.TestCase), {"task": name})
