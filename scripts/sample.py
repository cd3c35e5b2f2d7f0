"""Sample any task from the command line.

python scripts/sample.py --pipeline runs/quickstart/pipeline --task generate --class_label ring \\
    --num_images 16 --output_dir samples
"""

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
    import torch
    from PIL import Image
    from tqdm.auto import tqdm

    from mtl_diffusion.gallery import grid
    from mtl_diffusion.hub.pipeline import MultiTaskPipeline
    from mtl_diffusion.keyed import generator

    pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision)
    pipe.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipe.set_progress_bar_config(disable=True)

    def opened(paths: list[str] | None, mode: str) -> list | None:
        return paths and [Image.open(path).convert(mode) for path in paths]

    # Each of these is taken in turn: image i gets entry i, and the list starts again at its end.
    in_turn = {
        "class_label": args.class_label
        and [
            int(label) if label.isdigit() and label not in pipe.class_names else label
            for label in args.class_label
        ],
        "image": opened(args.image, "RGB"),
        "mask_image": opened(args.mask_image, "L"),
    }
    in_turn = {name: values for name, values in in_turn.items() if values}
    same = {
        name: getattr(args, name)
        for name in ("strength", "guidance_scale", "image_guidance_scale", "num_inference_steps")
    }
    count = args.num_images or max((len(values) for values in in_turn.values()), default=1)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    images = []
    with tqdm(total=count, unit="img") as progress:
        for first in range(0, count, args.batch_size):
            numbers = range(first, min(first + args.batch_size, count))
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
                    image.save(folder / f"{i:05d}.png")
            progress.update(len(numbers))
    if args.grid:
        width = max(1, round(count**0.5))
        rows = [images[i : i + width] for i in range(0, count, width)]
        grid(rows).save(folder / "grid.png")
    print(folder / "grid.png" if args.grid else folder)


if __name__ == "__main__":
    main()
