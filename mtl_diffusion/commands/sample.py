"""Sample any task from the command line.

    mtl-diffusion sample --pipeline runs/quickstart/pipeline --task generate \\
        --class_label ring --num_images 16 --output_dir samples

Under `accelerate launch` the processes share the work: image i is drawn from (seed, i), so they
are the same images for any number of processes. Run again, it draws the missing ones.
"""

from argparse import Namespace

from mtl_diffusion.tools import flags
from mtl_diffusion.tools.memory import keep_freed_memory


def parse() -> Namespace:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    flags.add(parser, "pipeline", "revision")
    add("--task", default="generate", help="one of the model's tasks")
    add("--class_label", nargs="+", help="names or numbers of classes, taken in turn; none: any")
    add("--image", nargs="+", help="picture files: the sources of inpaint, edit and colorize")
    add("--mask_image", nargs="+", help="picture files: white is repainted; one serves for all")
    add("--strength", type=float, help="how much of a source is hidden, 0 to 1")
    add("--guidance_scale", type=float, help="how much more the class counts; 1 is off")
    add("--image_guidance_scale", type=float, help="how much more the source counts; 1 is off")
    levels = "lowest and highest noise level of guidance; 0 inf is all; default: the task's"
    add("--guidance_interval", nargs=2, type=float, metavar=("LOW", "HIGH"), help=levels)
    add("--num_images", type=int, help="default: one for each source, or for each class")
    add("--batch_size", type=int, default=64, help="images at a time")
    flags.add(parser, "num_inference_steps", "seed", "output_dir", "device")
    return parser.parse_args()


def main() -> None:
    args = parse()
    keep_freed_memory()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from accelerate import Accelerator

    from mtl_diffusion.pictures.samples import write_samples
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    with flags.refusals():
        accelerator = Accelerator(cpu=args.device == "cpu")
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision)
        pipe.to(args.device or accelerator.device)
        pipe.set_progress_bar_config(disable=True)
        write_samples(pipe, vars(args), args.output_dir)
    if accelerator.is_main_process:
        print(args.output_dir)
