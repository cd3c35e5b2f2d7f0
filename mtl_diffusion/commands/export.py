"""Write a model for other runtimes: a file for each task, from noise to finished pixels.

    mtl-diffusion export --format onnx --pipeline runs/quickstart/pipeline --output_dir onnx

model.json describes their inputs, and names the classes. They run where onnxruntime does, without
Python too. `pip install 'mtl_diffusion[onnx]'` brings what this needs.
"""

from mtl_diffusion.tools import flags


def main() -> None:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    flags.add(parser, "pipeline", "revision")
    add("--format", choices=["onnx"], default="onnx", help="of the files")
    add("--tasks", nargs="+", help="default: all that the model has learned")
    flags.add(parser, "num_inference_steps")
    add("--half", action="store_true", help="round the weights to float16, in half the bytes")
    flags.add(parser, "output_dir")
    args = parser.parse_args()
    flags.check_installed("onnx", "onnx", "onnxscript")

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
    from mtl_diffusion.publishing.onnx import export_onnx

    with flags.refusals():
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision)
        options = {"tasks": args.tasks, "half": args.half}
        options["num_inference_steps"] = args.num_inference_steps
        facts = export_onnx(pipe, args.output_dir, name=args.pipeline, **options)
    names = ", ".join(f"{task}.onnx" for task in facts["tasks"])
    print(f"{names} and their weights, {facts['bytes'] / 1e6:.1f} MB, are in {args.output_dir}")
