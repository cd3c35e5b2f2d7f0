"""Open a page in the browser, to generate, inpaint and edit with a model.

    mtl-diffusion demo --pipeline runs/quickstart/pipeline

It runs on this machine and needs no network; `pip install 'mtl_diffusion[demo]'` brings gradio.
"""

import importlib.util
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pipeline", required=True, help="exported folder, or a name on the Hub")
    add("--revision", help="branch, tag or commit of a pipeline on the Hub")
    add("--device", help="default: cuda where there is one, else cpu")
    add("--port", type=int, help="default: the first free one from 7860 on")
    args = parser.parse_args()
    if importlib.util.find_spec("gradio") is None:
        sys.exit("demo: gradio is not installed; pip install 'mtl_diffusion[demo]'")

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch

    from mtl_diffusion.demo.serve import serve
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    try:
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision)
        serve(
            pipe.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu")),
            args.pipeline,
            args.port,
        )
    except (ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2)
