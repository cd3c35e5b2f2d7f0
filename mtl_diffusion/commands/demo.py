"""Open a page in the browser, to generate, inpaint and edit with a model.

    mtl-diffusion demo --pipeline runs/quickstart/pipeline

It runs on this machine and needs no network; `pip install 'mtl_diffusion[demo]'` brings gradio.
"""

from mtl_diffusion.tools import flags
from mtl_diffusion.tools.memory import keep_freed_memory


def main() -> None:
    parser = flags.parser(__doc__)
    flags.add(parser, "pipeline", "revision", "device")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    args = parser.parse_args()
    flags.check_installed("demo", "gradio")
    keep_freed_memory()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch

    from mtl_diffusion.demo.serve import serve
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    with flags.refusals():
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision)
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        serve(pipe.to(device), args.pipeline, args.port)
