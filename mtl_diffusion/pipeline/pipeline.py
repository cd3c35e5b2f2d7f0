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
from diffusers import DiffusionPipeline, EDMEulerScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .chains import Chains
from .colorize import Colorize
from .denoiser import build_conditioning
from .edit import Edit, EditAtOnce
from .format import MARK, ImageFormat
from .generate import Generate
from .inpaint import Inpaint
from .inputs import UNSET, read_count, read_inputs, read_interval, read_number, wrong
from .loading import WANTED, SelfContained, check_component
from .noise import draw_classes, initial_latents, own_generators
from .outputs import MultiTaskOutput, read_output_type, to_output
from .solver import solve
from .task import Task
from .tokens import NULL, Vocabulary
from .translate import Translate
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

# What is true of the weights, besides their words, is kept in the configuration of the UNet. Names
# with an underscore pass through diffusers' loading and saving.
CHAINS = "_chains"  # of a model of few steps: the noise levels that each number of steps visits
EDITS_AT_ONCE = "_edits_at_once"  # true where an edit is one evaluation
FREQUENCIES = "_class_frequencies"  # class name -> share of the training data; NULL: without one
TRANSLATIONS = "_translations"  # the names of the tasks of the class Translate
LEARNED = (CHAINS, EDITS_AT_ONCE, FREQUENCIES, MARK, TRANSLATIONS)
REMOVED = ("num_inversion_steps", "source_class")  # arguments of earlier versions
# The state of a call that the pipeline has after it, as diffusers' pipelines do.
STATE = ("_guidance_scale", "_image_guidance_scale", "_guidance_interval", "_num_timesteps")


class MultiTaskPipeline(SelfContained, DiffusionPipeline):
    """One small UNet that generates, inpaints and edits.

    Calls may overlap, from several threads or from a callback: each has its own state.

    Args:
        unet: takes `format.input_channels` channels and one-hot tokens.
        tokenizer: its vocabulary has the tasks and classes that the model has learned.
        scheduler: `EDMDPMSolverMultistepScheduler`; `EDMEulerScheduler` for a model of few steps.
        chains: of a model of few steps that was exported by a version before 0.2; later ones are
            in the configuration of their unet.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012, the name and type are diffusers'

    # The state of a call, in the shallow copy that it runs on.
    _interrupt, _caller = False, None  # the pipeline that it is a copy of
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
        self.register_modules(unet=unet, tokenizer=tokenizer, scheduler=scheduler)
        if chains is not None:
            self.register_to_config(chains=chains)
        self._check_vocabulary()

    def __setattr__(self, name: str, value):
        if name in WANTED:
            check_component(name, value)
        super().__setattr__(name, value)

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids of the tasks, classes and strengths."""
        return Vocabulary.of(self.tokenizer.get_vocab())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that this model has learned."""
        known = (*TASKS, *self.translations)
        return tuple(name for name in known if name in self.vocabulary.tasks)

    @property
    def translations(self) -> tuple[str, ...]:
        """Names of the tasks that make an image of one of another kind."""
        return tuple(self.unet.config.get(TRANSLATIONS) or ())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return tuple(self.vocabulary.classes)

    @property
    def format(self) -> ImageFormat:
        """Size, channels and depth of the images."""
        return ImageFormat.of(self.unet.config)

    @property
    def size(self) -> int:
        """Side of the square images in pixels; the longer side of rectangles, see `format`."""
        return max(self.format.size)

    @property
    def chains(self) -> Chains | None:
        """The noise levels of each number of steps; None: any number."""
        return self.unet.config.get(CHAINS) or self.config.get("chains")

    @property
    def class_frequencies(self) -> dict[str, float]:
        """How often a sample without a class is of each class, and of none; they sum to 1."""
        known = self.unet.config.get(FREQUENCIES) or dict.fromkeys(self.class_names, 1.0)
        total = sum(known.values())
        return {name: share / total for name, share in known.items()}

    def spec(self, task: str) -> Task:
        """The task as this model has learned it."""
        if task in self.translations:
            return Translate(task)
        at_once = task == Edit.name and self.unet.config.get(EDITS_AT_ONCE, False)
        return EditAtOnce() if at_once else TASKS[task]

    def default_steps(self, task: str) -> int:
        """num_inference_steps of a task, if it is not given."""
        if self.chains is None:
            return self.spec(task).default_steps
        lengths, few = self.step_counts(task), self.spec(task).few_steps
        return few if few in lengths else max(lengths)

    def default_guidance(self, task: str) -> float:
        """guidance_scale of a task, if it is not given: a model of few steps has it built in."""
        spec = self.spec(task)
        return 1.0 if self.chains and not spec.at_once else spec.default_guidance_scale

    guidance_scale = property(lambda self: self._guidance_scale)
    image_guidance_scale = property(lambda self: self._image_guidance_scale)
    guidance_interval = property(lambda self: self._guidance_interval)
    num_timesteps = property(lambda self: self._num_timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether a call ends after its current evaluation, with the image that it has by then.

        `pipe._interrupt = True` asks for it: on the pipeline that a callback gets for that call and
        those inside it, and on the pipeline itself, as from another thread, for all calls that run.
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
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, diffusers' own
        **unknown,
    ) -> MultiTaskOutput | tuple:
        """Draws images. A class, image, mask or strength may be a list, one entry a sample.

        Args:
            task: one of `pipe.tasks`.
            class_label: a class's name or number, or -1 for the null class, which is none. None:
                generate draws one for each image, as often as the training data has it; for the
                other tasks the null class.
            image: the source, of `pipe.format`: PIL of its mode, or floats in [0, 1] (or in the
                model's `value_range`) as an array (H, W, C) or a tensor (C, H, W), or a batch or a
                list of these. A model with the fit "pad" takes smaller ones of one of its sides.
            mask_image: white (1) is repainted, black (0) is kept, byte for byte.
            strength: degradation of the source, from 0 (none: the source comes back) to 1 (nothing
                is left of it). None: the task's default. Of several, each is a batch of its own.
            guidance_scale: guidance by the class; 1 is off. None: `pipe.default_guidance(task)`.
                Of an edit in one evaluation it is the largest weight of a pixel's change instead.
            image_guidance_scale: guidance by the source; 1 is off.
            guidance_interval: the lowest and the highest noise level (sigma, both included) where
                guidance is applied; elsewhere both scales are 1, for one branch in place of 2 or 3.
                None: `pipe.spec(task).default_guidance_interval`; (0, math.inf) is everywhere.
                Source: Kynkäänniemi et al. 2024, arXiv:2404.07724.
            num_inference_steps: evaluations of the denoiser, each of 1 to 3 branches. None:
                `pipe.default_steps(task)`. A model of few steps takes the lengths of
                `pipe.chains`, and leaves out the first steps of an edit that is not strong.
            num_images_per_prompt: images for each sample.
            generator: one, or one for each image. Image i depends on its seed and on i alone.
            latents: (images, C, H, W) standard normal, instead of drawing them. All other
                noise of an image is derived from its latents.
            output_type: "pil"; "np" (B, H, W, C) or "pt" (B, C, H, W), floats as arrays that are
                given; or "latent", (B, C, H, W) in about [-1, 1], not clipped. None: "pil" where
                PIL has a mode for the images, else "np".
            callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; it may
                return a dict with other latents. `pipe` is a shallow copy with the state of this
                call, such as its scheduler; `pipe._interrupt = True` ends the call.

        Raises:
            ValueError: an argument is out of its range, or one that the task doesn't take; or the
                latents don't stay finite.
        """
        for name in unknown:
            new = "mtl_diffusion.editing.whole.whole_edit, of the package, inverts an edit's source"
            raise TypeError(f"there is no argument {name}; {new if name in REMOVED else 'omit it'}")
        self._check_vocabulary()
        given = {"class_label": class_label, "image": image, "mask_image": mask_image}
        given |= {"strength": strength, "image_guidance_scale": image_guidance_scale}
        self._check_task(task, given)
        images = self.format
        output_type = read_output_type(output_type, images)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        if not {*callback[1]} <= {*self._callback_tensor_inputs}:
            wanted = f"a list with {self._callback_tensor_inputs} or nothing in it"
            raise wrong("callback_on_step_end_tensor_inputs", callback[1], wanted)
        call = self._copy_for_call()
        call._set_guidance(task, guidance_scale, image_guidance_scale, guidance_interval)
        steps = self._read_steps(task, num_inference_steps)
        spec, device = self.spec(task), self._execution_device
        count = read_count(num_images_per_prompt, "num_images_per_prompt")
        source = read_inputs(spec, given, self.class_names, images, count).to(device)
        noise = initial_latents(latents, generator, tuple(source.image.shape), device)
        own, label = own_generators(noise), source.label
        if spec.draws_class:
            shares = self.class_frequencies
            weights = [shares.get(name, 0.0) for name in (*self.class_names, NULL)]
            label = torch.where(label == UNSET, draw_classes(noise, weights).to(device), label)
        known = images.from_array(source.image)
        own_noise = randn_tensor(noise.shape, own, device, torch.float32)
        hint = spec.condition(known, source.mask, source.strength, own_noise)
        if images.fit == "pad":
            hint = hint.within(source.frame, known)
        conditioning = build_conditioning(hint, spec, label, self.vocabulary)
        start = spec.start(source.strength)
        start = start.tolist() if isinstance(start, Tensor) else [start] * len(noise)
        steps, last = (steps[:1], steps[1:]) if spec.at_once else (steps, [])
        scale = call.guidance_scale
        if spec.at_once:  # it scales the change, and guides no evaluation
            call._guidance_scale = 1.0
        latents = solve(call, known, noise, conditioning, start, steps, own, *callback)
        if spec.at_once:
            latents = torch.lerp(known, latents, spec.change(latents, known, hint.mask, scale))
        if last and not call.interrupt:
            # An edit is the mean of many: generate makes it one of them.
            weight = spec.change(latents, known, hint.mask).clamp(max=1)
            noise = randn_tensor(noise.shape, own, device, torch.float32)
            plain = Generate().condition(latents, source.mask, None, noise)
            conditioning = build_conditioning(plain, Generate(), label, self.vocabulary)
            start = last * len(noise)
            latents = solve(call, latents, noise, conditioning, start, last, own, *callback)
            latents = torch.lerp(known, latents, weight)
        if spec.at_once:
            call._guidance_scale = scale

        self.maybe_free_model_hooks()
        if self._caller is None:  # no call inside a callback
            vars(self).update((name, getattr(call, name)) for name in STATE)
        drawn = to_output(latents, hint.mask, source, output_type, images)
        names = [*self.class_names, None]  # a negative number is no class
        labels = [names[max(number, -1)] for number in label.tolist()]
        return MultiTaskOutput(drawn, labels) if return_dict else (drawn,)

    def _set_guidance(self, task: str, scale, image_scale, interval) -> None:
        """Reads the arguments of guidance; None: the default of the task and the model."""
        scale = self.default_guidance(task) if scale is None else scale
        image_scale = 1.0 if image_scale is None else image_scale
        interval = self.spec(task).default_guidance_interval if interval is None else interval
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
        lengths = self.step_counts(task)
        if steps not in lengths:
            raise ValueError(
                f"num_inference_steps is {steps}; this model does {task} in "
                f"{', '.join(map(str, lengths))} steps"
            )
        return lengths[steps]

    def step_counts(self, task: str) -> dict[int, list[float]]:
        """Of a model of few steps: each number of steps of a task, and the levels they start at."""
        lengths = {len(levels): list(levels) for levels in self.chains}
        if not self.spec(task).at_once:
            return lengths
        once = {1: lengths[1]}
        return once | ({2: [*lengths[1], lengths[2][-1]]} if "generate" in self.tasks else {})

    def _copy_for_call(self) -> "MultiTaskPipeline":
        """A shallow copy for the state of one call. `solve` gives it schedulers of its own."""
        if self._caller is None:
            self._interrupt = False  # of earlier calls
        call = copy.copy(self)
        call._interrupt, call._caller = False, self
        return call

    def _check_vocabulary(self) -> None:
        """Refuses a UNet and a tokenizer of two models."""
        if self.vocabulary.size != self.unet.config.encoder_hid_dim:
            raise ValueError(
                f"the tokenizer has {self.vocabulary.size} words and the unet takes "
                f"{self.unet.config.encoder_hid_dim}; they must be from one model: compare "
                "tokenizer/tokenizer.json with encoder_hid_dim in unet/config.json"
            )

    def _check_task(self, task: str, arguments: dict) -> None:
        """Refuses a task the model has not learned, and arguments that don't fit the task."""
        if task not in self.tasks:
            raise wrong("task", task, f"one that this model knows: {', '.join(self.tasks)}")
        spec = self.spec(task)
        given = {name for name, value in arguments.items() if value is not None}
        if missing := spec.required - given:
            raise ValueError(f"task {task!r} needs {', '.join(sorted(missing))}; give it too")
        if unknown := given - spec.required - spec.optional:
            takes = ", ".join(sorted(spec.required | spec.optional))
            raise ValueError(f"task {task!r} takes no {', '.join(sorted(unknown))}; only {takes}")
