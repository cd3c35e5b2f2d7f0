"""The pipeline: one model, several tasks.

pipe = DiffusionPipeline.from_pretrained("user/model", trust_remote_code=True)
pipe(task="generate", class_label="cat").images[0]
pipe(task="inpaint", image=image, mask_image=mask).images[0]
pipe(task="edit", image=image, class_label="dog", strength=0.7).images[0]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .colorize import Colorize
from .denoiser import Conditioning, build_conditioning, predict_guided
from .edit import Edit
from .generate import Generate
from .inpaint import Inpaint
from .inputs import (
    read_count,
    read_images,
    read_interval,
    read_labels,
    read_masks,
    read_number,
    read_numbers,
    repeat_to_batch,
)
from .loading import SelfContained
from .task import Task
from .tokens import Vocabulary

# Every task there is, by name. A new task is a file of its own and a line here.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Generate(),
        Inpaint(),
        Edit(),
        Colorize(),
    )
}


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Source:
    """The arguments of a call as tensors, one entry a sample.

    Attributes:
        image: (B, 3, H, W) in [0, 1]. mask: (B, 1, H, W) in {0, 1}. label: (B,), -1 for none.
        strength: (B,) in [0, 1], or None if the task takes none.
    """

    image: Tensor
    mask: Tensor
    label: Tensor
    strength: Tensor | None


class MultiTaskPipeline(SelfContained, DiffusionPipeline):
    """One small UNet that synthesises, inpaints and edits.

    Args:
        unet: takes `denoiser.CHANNELS` channels and one-hot tokens.
        tokenizer: its vocabulary says which tasks and classes the model has learned.
        scheduler: `EDMDPMSolverMultistepScheduler` or `EDMEulerScheduler`.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012, the name and type are diffusers'

    def __init__(self, unet: UNet2DConditionModel, tokenizer, scheduler):
        super().__init__()
        self.register_modules(unet=unet, tokenizer=tokenizer, scheduler=scheduler)
        self.vocabulary = Vocabulary.of(tokenizer.get_vocab())
        if self.vocabulary.size != unet.config.encoder_hid_dim:
            raise ValueError(
                f"the tokenizer has {self.vocabulary.size} words and the unet takes "
                f"{unet.config.encoder_hid_dim}; they must be from one model: compare "
                "tokenizer/tokenizer.json with encoder_hid_dim in unet/config.json"
            )

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
        num_inference_steps: int = 18,
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
            strength: how much of the source is hidden, from 0 (nothing: the source comes back) to
                1 (everything). None: the task's default.
            guidance_scale: how much more the class counts; 1 is off. None: the task's default.
            image_guidance_scale: how much more the source counts; 1 is off.
            guidance_interval: the lowest and the highest noise level (sigma, both included) where
                guidance is applied; elsewhere both scales are 1, for one branch in place of 2 or 3.
                None: everywhere. Source: Kynkäänniemi et al. 2024, arXiv:2404.07724.
            num_inference_steps: evaluations of the denoiser, each of 1 to 3 branches.
            num_images_per_prompt: images for each sample.
            generator: one, or one for each image.
            latents: (images, 3, size, size) standard normal, instead of drawing them.
            output_type: "pil"; "np" (B, H, W, 3) or "pt" (B, 3, H, W), floats in [0, 1]; or
                "latent", (B, 3, H, W) in about [-1, 1], not clipped.
            callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; it may
                return a dict with other latents.

        Raises:
            ValueError: an argument is out of its range, or one that the task doesn't take.
        """
        self._check_task(
            task,
            image=image,
            mask_image=mask_image,
            class_label=class_label,
            strength=strength,
            image_guidance_scale=image_guidance_scale,
        )
        if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"output_type is {output_type!r}; it must be one of {', '.join(OUTPUT_TYPES)}"
            )
        self._check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        spec = TASKS[task]
        guidance = spec.default_guidance_scale if guidance_scale is None else guidance_scale
        image_guidance = 1.0 if image_guidance_scale is None else image_guidance_scale
        self._guidance_scale = read_number(guidance, 0, math.inf, "guidance_scale")
        self._image_guidance_scale = read_number(
            image_guidance, 0, math.inf, "image_guidance_scale"
        )
        self._guidance_interval = read_interval(guidance_interval, "guidance_interval")
        steps = read_count(num_inference_steps, "num_inference_steps")
        device = self._execution_device

        count = read_count(num_images_per_prompt, "num_images_per_prompt")
        source = self._read_source(spec, class_label, image, mask_image, strength, count)
        noise = self._read_latents(latents, generator, len(source.image))
        # Only a task that degrades its source needs noise of its own: draw it after the latents.
        own_noise = randn_tensor(noise.shape, generator, device, torch.float32)
        known = 2 * source.image - 1
        hint = spec.condition(known, source.mask, source.strength, own_noise)
        conditioning = build_conditioning(hint, spec, source.label, self.vocabulary)

        latents = self._denoise(
            known,
            noise,
            conditioning,
            steps,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        self.maybe_free_model_hooks()
        images = _finish(latents, conditioning.mask, source.image, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _denoise(
        self,
        known: Tensor,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int,
        generator,
        callback: Callable | None,
        callback_inputs: list[str],
    ) -> Tensor:
        """Solves the probability-flow ODE from sigma_max to 0, known pixels exact at every step.

        Args:
            known: (B, 3, H, W) in [-1, 1], what stands where the mask is 0.
            noise: (B, 3, H, W) standard normal.

        Returns:
            (B, 3, H, W) float32.
        """
        scheduler = self.scheduler
        scheduler.set_timesteps(steps, device=known.device)
        scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True  # `predict` does it; EDMEulerScheduler would warn
        sigmas = scheduler.sigmas.tolist()
        low, high = self.guidance_interval
        slack = 1 + 1e-5  # schedules are rounded: a sigma_max of 80 comes out as 79.99998
        guided = [low / slack <= sigma <= high * slack for sigma in sigmas]
        self._num_timesteps = len(scheduler.timesteps)
        hole = conditioning.mask > 0
        x = torch.where(hole, 0.0, known) + sigmas[0] * noise
        with self.progress_bar(total=self._num_timesteps) as progress:
            for i, timestep in enumerate(scheduler.timesteps):
                F = predict_guided(
                    self.unet,
                    scheduler,
                    x,
                    torch.full((len(x), 1, 1, 1), sigmas[i], device=x.device),
                    conditioning,
                    self.vocabulary.null,
                    self.guidance_scale if guided[i] else 1.0,
                    self.image_guidance_scale if guided[i] else 1.0,
                )
                x = scheduler.step(F, timestep, x, generator=generator).prev_sample
                x = torch.where(hole, x, known + sigmas[i + 1] * noise)
                if callback is not None:
                    tensors = {name: {"latents": x}[name] for name in callback_inputs}
                    x = _replaced(x, callback(self, i, timestep, tensors))
                progress.update()
        return x

    def _check_task(self, task: str, **arguments) -> None:
        """Refuses a task the model has not learned, and arguments that don't fit the task."""
        if not isinstance(task, str) or task not in self.tasks:
            untrained = f"; {task} is a task, but this model has not learned it"
            raise ValueError(
                f"task is {task!r}; this model knows {', '.join(self.tasks)}"
                + (untrained if isinstance(task, str) and task in TASKS else "")
            )
        spec = TASKS[task]
        given = {name for name, value in arguments.items() if value is not None}
        if missing := spec.required - given:
            raise ValueError(f"task {task!r} needs {', '.join(sorted(missing))}; give it too")
        if strangers := given - spec.required - spec.optional:
            takes = ", ".join(sorted(spec.required | spec.optional))
            raise ValueError(
                f"task {task!r} takes no {', '.join(sorted(strangers))}; it takes {takes}"
            )

    def _check_callback(self, callback: Callable | None, inputs: list[str]) -> None:
        if callback is not None and not callable(callback):
            raise ValueError(f"callback_on_step_end is {callback!r}; it must be a function or None")
        known = self._callback_tensor_inputs
        if not isinstance(inputs, list | tuple) or any(name not in known for name in inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs is {inputs!r}; it must be a list, and may "
                f"have {', '.join(known)}"
            )

    def _read_source(
        self, spec: Task, class_label, image, mask_image, strength, repeat: int
    ) -> Source:
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
        parts.setdefault("image", torch.zeros(1, 3, self.size, self.size))
        parts.setdefault("mask_image", torch.ones(1, 1, self.size, self.size))
        parts = {
            name: part.repeat_interleave(repeat, 0).to(self._execution_device)
            for name, part in repeat_to_batch(parts).items()
        }
        return Source(
            parts["image"], parts["mask_image"], parts["class_label"], parts.get("strength")
        )

    def _read_latents(self, latents: Tensor | None, generator, count: int) -> Tensor:
        """(count, 3, size, size) standard normal in float32, whatever the precision of the unet."""
        shape = (count, 3, self.size, self.size)
        each = generator if isinstance(generator, list) else [generator] * count
        if len(each) != count:
            raise ValueError(
                f"generator has {len(each)} entries for {count} images; give one, or one each"
            )
        if generator is not None and not all(isinstance(item, torch.Generator) for item in each):
            raise ValueError(
                f"generator is {generator!r}; it must be a torch.Generator or a list of them, "
                "such as torch.Generator().manual_seed(0)"
            )
        # Drawn even where they are given: the task's own noise comes next, and must stay the same.
        drawn = randn_tensor(shape, generator, self._execution_device, torch.float32)
        if latents is None:
            return drawn
        found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        if found != shape or not (latents.is_floating_point() and latents.isfinite().all()):
            raise ValueError(
                f"latents are {found}; they must be a tensor of shape {shape}, of finite floats"
            )
        return latents.to(self._execution_device, torch.float32)


def _finish(latents: Tensor, mask: Tensor, source: Tensor, output_type: str):
    """Images of the kind asked for. Where the mask is 0 the source stands, in [0, 1] as it came."""
    if output_type == "latent":
        return latents
    images = torch.where(mask > 0, (latents / 2 + 0.5).clamp(0, 1), source)
    if output_type != "pt":
        images = VaeImageProcessor.pt_to_numpy(images)
    return VaeImageProcessor.numpy_to_pil(images) if output_type == "pil" else images


def _replaced(latents: Tensor, answer: dict | None) -> Tensor:
    """The latents, or those that a callback returned in place of them."""
    if answer is None:
        return latents
    new = answer.get("latents", latents) if isinstance(answer, dict) else None
    if not isinstance(new, Tensor) or new.shape != latents.shape:
        raise ValueError(
            "callback_on_step_end returned neither None nor a dict whose latents have the shape "
            f"{tuple(latents.shape)}"
        )
    return new.to(latents)
