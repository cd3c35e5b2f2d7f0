"""The pipeline: one model, several tasks.

pipe = DiffusionPipeline.from_pretrained("user/model", trust_remote_code=True)
pipe(task="generate", class_label="cat").images[0]
pipe(task="inpaint", image=image, mask_image=mask).images[0]
pipe(task="edit", image=image, class_label="dog", strength=0.7).images[0]
"""

import copy
import math
from collections.abc import Callable
from typing import Optional

import torch
from diffusers import (
    DiffusionPipeline,
    EDMEulerScheduler,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .chains import Chains, check_chains
from .class_mask import GeneratesMasks
from .colorize import Colorize
from .components import check_component
from .denoiser import build_conditioning
from .edit import Edit
from .generate import Generate
from .inpaint import Inpaint
from .inputs import (
    Inputs,
    read_count,
    read_images,
    read_interval,
    read_labels,
    read_masks,
    read_number,
    read_numbers,
    repeat_to_batch,
    shown,
)
from .inversion import invert, read_inversion_steps
from .loading import SelfContained
from .noise import initial_latents, own_generators
from .outputs import check_output_type, to_output
from .solver import solve
from .task import Task
from .tokens import Vocabulary
from .upscale import Upscale

# All tasks, by name. A new task is a file of its own and a line here.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Generate(),
        Inpaint(),
        Edit(),
        Colorize(),
        Upscale(),
    )
}


class MultiTaskPipeline(SelfContained, GeneratesMasks, DiffusionPipeline):
    """One small UNet that generates, inpaints and edits.

    Calls may overlap, from several threads or from a callback: each has its own state.

    Args:
        unet: takes `denoiser.CHANNELS` channels and one-hot tokens.
        tokenizer: its vocabulary has the tasks and classes that the model has learned.
        scheduler: `EDMDPMSolverMultistepScheduler` or `EDMEulerScheduler`.
        chains: of a model that draws in few steps, the noise levels that each number of steps
            visits; with `EDMEulerScheduler`.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012, the name and type are diffusers'

    # The state of a call, in the shallow copy that it runs on. `_caller` is what was copied.
    _caller = None
    _interrupt = False
    _guidance_scale = _image_guidance_scale = 1.0
    _guidance_interval = (0.0, math.inf)
    _num_timesteps = 0

    def __init__(
        self,
        unet: UNet2DConditionModel,
        tokenizer,
        scheduler,
        chains: Optional[list] = None,  # noqa: UP045, the form that diffusers 0.36 can read
    ):
        super().__init__()
        components = {"unet": unet, "tokenizer": tokenizer, "scheduler": scheduler}
        for name, component in components.items():
            check_component(name, component)
        self.register_modules(**components)
        if chains is not None:
            check_chains(chains)
            self.register_to_config(chains=chains)
        self._check_vocabulary()

    def __setattr__(self, name: str, value):
        check_component(name, value)
        super().__setattr__(name, value)
        if name == "tokenizer":
            self.vocabulary = Vocabulary.of(value.get_vocab())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that this model has learned."""
        return tuple(name for name in TASKS if name in self.vocabulary.tasks)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return tuple(self.vocabulary.classes)

    @property
    def size(self) -> int:
        """Height and width of the images in pixels."""
        return self.unet.config.sample_size

    @property
    def chains(self) -> Chains | None:
        """The noise levels of each number of steps; None: any number."""
        return self.config.get("chains")

    def default_steps(self, task: str) -> int:
        """num_inference_steps of a task, if it is not given."""
        if self.chains is None:
            return TASKS[task].default_steps
        lengths = [len(levels) for levels in self.chains]
        few = TASKS[task].few_steps
        return few if few in lengths else lengths[-1]

    def default_guidance(self, task: str) -> float:
        """guidance_scale of a task, if it is not given: a model of few steps has it built in."""
        return 1.0 if self.chains else TASKS[task].default_guidance_scale

    def default_guidance_interval(self, task: str) -> tuple[float, float]:
        """guidance_interval of a task, if it is not given."""
        return TASKS[task].default_guidance_interval

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def image_guidance_scale(self) -> float:
        return self._image_guidance_scale

    @property
    def guidance_interval(self) -> tuple[float, float]:
        return self._guidance_interval

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a call ends after its current evaluation, with the image that it has by then.

        `pipe._interrupt = True` asks for it: on the pipeline that a callback gets it ends that
        call, and on the pipeline itself, as from another thread, all calls that run.
        """
        return self._interrupt or (self._caller is not None and self._caller.interrupt)

    @torch.no_grad()
    def __call__(
        self,
        task: str = "generate",
        class_label: str | int | list | None = None,
        image=None,
        mask_image=None,
        strength: float | list[float] | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        num_inversion_steps: int | None = None,
        source_class: str | int | list | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, diffusers' own
    ) -> ImagePipelineOutput | tuple:
        """Draws images. A class, image, mask or strength may be a list, one entry a sample.

        Args:
            task: one of `pipe.tasks`.
            class_label: a class's name or number, None for no class.
            image: the source, `pipe.size` pixels square: PIL, or floats in [0, 1] as an array
                (H, W, 3) or a tensor (3, H, W), or a batch or a list of these.
            mask_image: white (1) is repainted, black (0) is kept, byte for byte.
            strength: degradation of the source, from 0 (none: the source comes back) to 1 (nothing
                is left of it). None: the task's default. Of several, each is a batch of its own.
            guidance_scale: guidance by the class; 1 is off. None: `pipe.default_guidance(task)`.
                Of an edit it is the scale where the class makes as much difference to the source
                as on average: up to twice as much where it makes more, 0 where it makes none.
            image_guidance_scale: guidance by the source; 1 is off.
            guidance_interval: the lowest and the highest noise level (sigma, both included) where
                guidance is applied; elsewhere both scales are 1, for one branch in place of 2 or 3.
                None: `pipe.default_guidance_interval(task)`; (0, math.inf) is everywhere. Source:
                Kynkäänniemi et al. 2024, arXiv:2404.07724.
            num_inference_steps: evaluations of the denoiser, each of 1 to 3 branches. None:
                `pipe.default_steps(task)`. A model of few steps takes the lengths of
                `pipe.chains`, and leaves out the first steps of an edit that is not strong.
            num_inversion_steps: evaluations that carry the source of an edit up to the noise
                level where it starts, so that what the class does not change comes back as it was.
                0: the source with random noise, for edits that differ from seed to seed. None:
                the task's default; of a model of few steps, which can't do it, 0.
            source_class: the class of an edit's source, if it is known: more of the source is kept.
            num_images_per_prompt: images for each sample.
            generator: one, or one for each image. Image i depends on its seed and on i alone.
            latents: (images, 3, size, size) standard normal, instead of drawing them. All other
                noise of an image is derived from its latents.
            output_type: "pil"; "np" (B, H, W, 3) or "pt" (B, 3, H, W), floats in [0, 1]; or
                "latent", (B, 3, H, W) in about [-1, 1], not clipped.
            callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; it may
                return a dict with other latents. `pipe` is a shallow copy with the state of this
                call, such as its scheduler; `pipe._interrupt = True` ends the call.

        Raises:
            ValueError: an argument is out of its range, or one that the task doesn't take; or the
                latents don't stay finite.
        """
        self._check_vocabulary()
        self._check_task(
            task,
            image=image,
            mask_image=mask_image,
            class_label=class_label,
            strength=strength,
            image_guidance_scale=image_guidance_scale,
            num_inversion_steps=num_inversion_steps,
            source_class=source_class,
        )
        check_output_type(output_type)
        self._check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        call = self._copy_for_call()
        call._set_guidance(task, guidance_scale, image_guidance_scale, guidance_interval)
        steps = self._read_steps(task, num_inference_steps)
        spec, device = TASKS[task], self._execution_device
        inversion_steps = read_inversion_steps(
            num_inversion_steps, spec.default_inversion_steps, self.chains
        )
        if source_class is not None and self.chains:
            raise ValueError(
                "source_class is given; a model of few steps has its guidance built in, and can't "
                "use it: leave it out"
            )
        count = read_count(num_images_per_prompt, "num_images_per_prompt")
        source = self._read_source(
            spec, class_label, image, mask_image, strength, count, source_class
        )
        noise = initial_latents(latents, generator, tuple(source.image.shape), device)
        own = own_generators(noise)
        known = 2 * source.image - 1
        own_noise = randn_tensor(noise.shape, own, device, torch.float32)
        hint = spec.condition(known, source.mask, source.strength, own_noise)
        conditioning = build_conditioning(hint, spec, source.label, self.vocabulary)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        strengths = [None] * len(noise) if source.strength is None else source.strength.tolist()
        start = [spec.start(strength) for strength in strengths]
        base = build_conditioning(hint, spec, source.source_class, self.vocabulary)
        if inversion_steps:
            noise = invert(call, known, noise, base, start, inversion_steps)
        local = call._local_guidance(spec, known, base, source.label, start, own)
        latents = solve(call, known, noise, conditioning, start, steps, own, *callback, local)

        self.maybe_free_model_hooks()
        if self._caller is None:  # after a call, diffusers' pipelines have its values
            for name in ("_guidance_scale", "_image_guidance_scale", "_guidance_interval"):
                setattr(self, name, getattr(call, name))
            self._num_timesteps = call._num_timesteps
        images = to_output(latents, conditioning.mask, source.image, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _set_guidance(self, task: str, scale, image_scale, interval) -> None:
        """Reads the arguments of guidance; None: the default of the task and the model."""
        scale = self.default_guidance(task) if scale is None else scale
        image_scale = 1.0 if image_scale is None else image_scale
        interval = self.default_guidance_interval(task) if interval is None else interval
        self._guidance_scale = read_number(scale, 0, math.inf, "guidance_scale")
        self._image_guidance_scale = read_number(image_scale, 0, math.inf, "image_guidance_scale")
        self._guidance_interval = read_interval(interval, "guidance_interval")

    def _read_steps(self, task: str, given: int | None) -> int | list[float]:
        """The number of steps; of a model of few steps, the noise levels that they start at."""
        given = self.default_steps(task) if given is None else given
        steps = read_count(given, "num_inference_steps")
        if self.chains is None:
            return steps
        if not isinstance(self.scheduler, EDMEulerScheduler):
            raise ValueError(
                f"scheduler is of the type {type(self.scheduler).__name__}; this model of few steps"
                " takes EDMEulerScheduler: pipe.scheduler = "
                "EDMEulerScheduler.from_config(pipe.scheduler.config)"
            )
        lengths = {len(levels): levels for levels in self.chains}
        if steps not in lengths:
            raise ValueError(
                f"num_inference_steps is {steps}; this model draws in "
                f"{', '.join(map(str, lengths))} steps"
            )
        return list(lengths[steps])

    def _copy_for_call(self) -> "MultiTaskPipeline":
        """A shallow copy for the state of one call. `solve` gives it schedulers of its own."""
        if self._caller is None:
            self._interrupt = False  # of earlier calls
        call = copy.copy(self)
        call._caller, call._interrupt = self, False
        return call

    def _check_vocabulary(self) -> None:
        """Refuses a UNet and a tokenizer of two models."""
        if self.vocabulary.size != self.unet.config.encoder_hid_dim:
            raise ValueError(
                f"the tokenizer has {self.vocabulary.size} words and the unet takes "
                f"{self.unet.config.encoder_hid_dim}; they must be from one model: compare "
                "tokenizer/tokenizer.json with encoder_hid_dim in unet/config.json"
            )

    def _check_task(self, task: str, **arguments) -> None:
        """Refuses a task the model has not learned, and arguments that don't fit the task."""
        if not isinstance(task, str) or task not in self.tasks:
            untrained = f"; {task} is a task, but this model has not learned it"
            raise ValueError(
                f"task is {shown(task)}; this model knows {', '.join(self.tasks)}"
                + (untrained if isinstance(task, str) and task in TASKS else "")
            )
        spec = TASKS[task]
        given = {name for name, value in arguments.items() if value is not None}
        if missing := spec.required - given:
            raise ValueError(f"task {task!r} needs {', '.join(sorted(missing))}; give it too")
        if unknown := given - spec.required - spec.optional:
            takes = ", ".join(sorted(spec.required | spec.optional))
            raise ValueError(
                f"task {task!r} takes no {', '.join(sorted(unknown))}; it takes {takes}"
            )

    def _check_callback(self, callback: Callable | None, inputs: list[str]) -> None:
        if callback is not None and not callable(callback):
            raise ValueError(
                f"callback_on_step_end is {shown(callback)}; it must be a function or None"
            )
        known = self._callback_tensor_inputs
        if not isinstance(inputs, list | tuple) or any(name not in known for name in inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs is {shown(inputs)}; it must be a list, and "
                f"may have {', '.join(known)}"
            )

    def _read_source(
        self, spec: Task, class_label, image, mask_image, strength, repeat: int, source_class=None
    ) -> Inputs:
        """The arguments as tensors of one length on the device, each entry repeated.

        Without a source the image is zero and all of it is painted.
        """
        parts = {"class_label": read_labels(class_label, self.class_names)}
        if "class_label" in spec.required and (parts["class_label"] < 0).any():
            raise ValueError(f"class_label has None in it; task {spec.name!r} needs a class")
        strength = spec.default_strength if strength is None else strength
        if strength is not None:
            parts["strength"] = read_numbers(strength, 0, 1, "strength")
        if image is not None:
            parts["image"] = read_images(image, self.size)
        if mask_image is not None:
            parts["mask_image"] = read_masks(mask_image, self.size)
        if source_class is not None:
            parts["source_class"] = read_labels(source_class, self.class_names, "source_class")
        shape = (1, 3, self.size, self.size)
        parts.setdefault("image", torch.zeros(shape, dtype=torch.float32))
        parts.setdefault("mask_image", torch.ones(shape, dtype=torch.float32)[:, :1])
        parts.setdefault("source_class", torch.tensor([-1]))
        parts = {
            name: part.repeat_interleave(repeat, 0).to(self._execution_device)
            for name, part in repeat_to_batch(parts).items()
        }
        return Inputs(
            parts["image"],
            parts["mask_image"],
            parts["class_label"],
            parts.get("strength"),
            parts["source_class"],
        )
