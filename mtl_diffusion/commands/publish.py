"""Export a checkpoint to a folder for `from_pretrained`, and put it on the Hub.

    mtl-diffusion publish --checkpoint runs/c10 --output_dir runs/c10/pipeline
    mtl-diffusion publish --checkpoint runs/c10/checkpoints/step-300 --output_dir export \\
        --push_to_hub --hub_model_id user/name
    mtl-diffusion publish --pipeline runs/c10/pipeline --space user/name
    mtl-diffusion publish --pipeline runs/c10/pipeline --static page

A Space is the page of `mtl-diffusion demo` on the Hub, with a copy of the model. --static writes a
page that runs the model in the browser, for any server of files; with --space it is the Space.

Exit codes: 0 done; 1 exported and not uploaded; 2 refused.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

from mtl_diffusion.tools import flags


def parse() -> Namespace:
    parser = flags.parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    where = "a checkpoint's folder, or a run's output_dir: its newest complete checkpoint"
    source.add_argument("--checkpoint", type=flags.path, help=where)
    needs = {"required": False, "help": "exported folder, or a name on the Hub; for a page"}
    flags.add(source, "pipeline", pipeline=needs)
    add = parser.add_argument
    target = {"required": False, "help": "of a checkpoint; an earlier export there is replaced"}
    flags.add(parser, "output_dir", output_dir=target)
    scores = "metrics.json of mtl-diffusion evaluate, for the model card"
    add("--metrics", type=flags.path, help=scores)
    add("--no_pictures", action="store_true", help="draw no gallery for the model card")
    add("--half", action="store_true", help="write float16: half the bytes, and loads as float32")
    add("--push_to_hub", action="store_true", help="upload the folder")
    add("--hub_model_id", help="user/name; default: that of the run")
    add("--private", action="store_true", help="make the repository private when it is created")
    add("--revision", help="branch to upload to, created where it isn't there; default: main")
    add("--space", metavar="USER/NAME", help="make or update this Space")
    static = "write the page that runs in the browser to this folder"
    add("--static", metavar="FOLDER", type=flags.path, help=static)
    web = "the unpacked npm package onnxruntime-web, for --static; default: npm downloads it"
    add("--onnxruntime_web", metavar="FOLDER", type=flags.path, help=web)
    args = parser.parse_args()
    if args.checkpoint and not args.output_dir:
        parser.error("--checkpoint needs --output_dir, the folder to export to")
    if args.pipeline and not (args.space or args.static):
        parser.error(
            "--pipeline needs --space or --static; a checkpoint is what --push_to_hub uploads"
        )
    return args


def main() -> None:
    args = parse()
    if args.static:
        flags.check_installed("onnx", "onnx", "onnxscript")

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from mtl_diffusion.publishing.upload import UploadError

    try:
        with flags.refusals():
            model, private = export(args) if args.checkpoint else (None, args.private)
            if args.static or args.space:
                publish_page(args, model, private)
    except UploadError as error:
        sys.exit(f"{error}\nTo try again:\n  {flags.command()}")


def export(args: Namespace) -> tuple[str | None, bool]:
    """Writes the folder of a checkpoint, and uploads it if that is asked for.

    Returns:
        The repository that it was uploaded to, if it was, and whether the model is private.
    """
    from mtl_diffusion.publishing.export import of_checkpoint, push, write
    from mtl_diffusion.publishing.upload import full_name

    metrics = json.loads(args.metrics.read_text()) if args.metrics else None
    trained = of_checkpoint(args.checkpoint)
    name = args.hub_model_id or trained.config.repository
    repository = full_name(name) if args.push_to_hub else args.hub_model_id
    options = {"metrics": metrics, "pictures": not args.no_pictures, "half": args.half}
    write(trained, args.output_dir, repository, **options)
    print(f"Step {trained.step} is in {args.output_dir}")
    private = args.private or trained.config.hub_private_repo
    if not args.push_to_hub:
        return None, private
    print(f"Published as {push(args.output_dir, name, trained.step, private, args.revision)}")
    return repository, private


def publish_page(args: Namespace, model: str | None, private: bool) -> None:
    """Makes a Space, or writes the page that runs in the browser, which may be the Space's."""
    import torch

    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
    from mtl_diffusion.publishing.space import push_space, write_space

    pipeline = str(args.pipeline or args.output_dir)
    pipe = MultiTaskPipeline.from_pretrained(pipeline)
    with TemporaryDirectory() as temporary:
        folder = args.static or Path(temporary, "page")
        if args.static:
            from mtl_diffusion.publishing.static import write_page

            name = args.space or model or Path(pipeline).resolve().name
            write_page(pipe, folder, name=name, package=args.onnxruntime_web)
            print(f"The page is in {folder}; try it: python -m http.server -d {folder}")
        else:
            pipe.to(torch.float16 if args.half else torch.float32)
            write_space(pipe, folder, name=args.space)
        if args.space:
            print(f"The Space is {push_space(folder, args.space, model=model, private=private)}")
