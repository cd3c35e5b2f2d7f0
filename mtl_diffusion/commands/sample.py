"""Sample any task from the command line.

    mtl-diffusion sample --pipeline runs/quickstart/pipeline --task generate \\
        --class_label ring --num_images 16 --output_dir samples

Under `accelerate launch` the processes share the work: image i is drawn from (seed, i), so they
are the same images whatever the number of processes. Run again, it draws what is missing.
"""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pipeline", required=True, help="exported folder, or a name on the Hub")
    add("--revision", help="branch, tag or commit of a pipeline on the Hub")
    add("--task", default="generate", help="one of the model's tasks; default: %(default)s")
    add("--class_label", nargs="+", help="names or numbers of classes, taken in turn; none: any")
    add("--image", nargs="+", help="picture files: the sources of inpaint, edit and colorize")
    add("--mask_image", nargs="+", help="picture files: white is repainted; one serves for all")
    add("--strength", type=float, help="how much of a source is hidden, 0 to 1")
    add("--guidance_scale", type=float, help="how much more the class counts; 1 is off")
    add("--image_guidance_scale", type=float, help="how much more the source counts; 1 is off")
    add(
        "--guidance_interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="the noise levels where guidance is applied; default: all",
    )
    add("--num_inference_steps", type=int, default=18, help="default: %(default)s")
    add("--num_images", type=int, help="default: one for each source, or for each class")
    add("--batch_size", type=int, default=64, help="images at a time; default: %(default)s")
    add("--seed", type=int, default=0, help="image i is drawn from (seed, i); default: %(default)s")
    add("--output_dir", required=True, help="folder for 00000.png, 00001.png, ...")
    add("--grid", action="store_true", help="write one grid.png instead of single files")
    add("--device", help="default: cuda where there is one, else cpu")
    return parser.parse_args()


def main() -> None:
    args = parse()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from accelerate import Accelerator
    from tqdm.auto import tqdm

    from mtl_diffusion.evaluation.bulk import weights_digest
    from mtl_diffusion.pictures.grids import grid
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
    from mtl_diffusion.tools.rng import generator

    accelerator = Accelerator(cpu=args.device == "cpu")
    if args.grid and accelerator.num_processes > 1:
        sys.exit("sample: --grid is drawn by one process; leave it out, or launch one")
    pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision)
    pipe.to(args.device or accelerator.device)
    pipe.set_progress_bar_config(disable=True)

    in_turn, same = arguments(args, pipe.class_names)
    count = args.num_images or max((len(values) for values in in_turn.values()), default=1)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not args.grid:
        with accelerator.main_process_first():
            claim(folder, args, weights_digest(pipe.unet))

    images = []
    batches = [
        range(first, min(first + args.batch_size, count))
        for first in range(0, count, args.batch_size)
    ]
    # Whole batches, dealt in turn: a batch holds the same images whoever draws it.
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    if not args.grid:
        mine = [rows for rows in mine if not all(file_of(folder, i).exists() for i in rows)]
    progress = tqdm(total=sum(map(len, mine)), unit="img", disable=not accelerator.is_main_process)
    for numbers in mine:
        drawn = pipe(
            task=args.task,
            generator=[generator(args.seed, i, device=pipe.device) for i in numbers],
            **{name: [v[i % len(v)] for i in numbers] for name, v in in_turn.items()},
            **({} if in_turn else {"num_images_per_prompt": len(numbers)}),
            **same,
        ).images
        if args.grid:
            images += drawn
        else:
            for i, image in zip(numbers, drawn, strict=True):
                part = folder / f".{i}.part"
                image.save(part, format="PNG")
                part.replace(file_of(folder, i))
        progress.update(len(numbers))
    progress.close()
    accelerator.wait_for_everyone()
    if args.grid:
        width = max(1, round(count**0.5))
        rows = [images[i : i + width] for i in range(0, count, width)]
        grid(rows).save(folder / "grid.png")
    if accelerator.is_main_process:
        print(folder / "grid.png" if args.grid else folder)


def arguments(args: Namespace, class_names: tuple[str, ...]) -> tuple[dict, dict]:
    """The pipeline's arguments: lists whose entries are taken in turn, image by image; the rest."""
    from PIL import Image

    def opened(paths: list[str] | None, mode: str) -> list | None:
        return paths and [Image.open(path).convert(mode) for path in paths]

    in_turn = {
        "class_label": args.class_label
        and [
            int(label) if label.isdigit() and label not in class_names else label
            for label in args.class_label
        ],
        "image": opened(args.image, "RGB"),
        "mask_image": opened(args.mask_image, "L"),
    }
    same = (
        *("strength", "guidance_scale", "image_guidance_scale", "guidance_interval"),
        "num_inference_steps",
    )
    return (
        {name: values for name, values in in_turn.items() if values},
        {name: getattr(args, name) for name in same},
    )


def file_of(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def claim(folder: Path, args: Namespace, weights: str) -> None:
    """Notes how the folder's images are drawn, and refuses one whose images are others."""
    free = ("num_images", "output_dir", "device", "grid", "pipeline", "revision")
    settings = {"weights": weights} | {k: v for k, v in vars(args).items() if k not in free}
    path = folder / "settings.json"
    found = json.loads(path.read_text()) if path.exists() else settings
    # A flag that the folder is older than was not given then.
    if names := [name for name in settings if found.get(name) != settings[name]]:
        sys.exit(
            f"sample: output_dir {folder} holds images of other settings "
            f"({', '.join(names)}); give another folder, or remove this one"
        )
    path.write_text(json.dumps(settings, indent=2) + "\n")
