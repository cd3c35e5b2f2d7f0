"""Speed on this machine: of a training step and its parts, of sampling, or of training scripts.

    python scripts/benchmark.py step --config configs/cifar10_cpu.yaml
    python scripts/benchmark.py sampling --pipeline pretrained/mtl-cifar10
    python scripts/benchmark.py scripts "accelerate launch scripts/train.py --config a.yaml" \\
        "accelerate launch train_unconditional.py --dataset_name x --num_epochs 1"

Prints the median, the lowest and the highest value of all rounds. `NAME --help` has the flags.
"""

from functools import partial

from mtl_diffusion.config.command_line import parse
from mtl_diffusion.tools import flags
from mtl_diffusion.tools.memory import keep_freed_memory


def main() -> None:
    parser = flags.parser(__doc__)
    kind = parser.add_subparsers(dest="kind", required=True).add_parser
    step = flags.parser("All other flags are those of scripts/train.py.", partial(kind, "step"))
    sampling = flags.parser("The generate task without guidance.", partial(kind, "sampling"))
    text = "They take turns. The learning rate that each logs to TensorBoard is their clock."
    scripts = flags.parser(text, partial(kind, "scripts"))
    scripts.add_argument("commands", nargs="+", help="each in quotes, of one batch size")
    flags.add(sampling, "pipeline", "num_inference_steps")
    sampling.add_argument("--batch_size", type=int, default=16, help="images at once")
    step.add_argument("--steps", type=int, default=40, help="steps of a measurement")
    for one in (step, scripts):
        one.add_argument("--warm", type=int, default=10, help="first steps, not timed")
    for one in (step, sampling, scripts):
        one.add_argument("--rounds", type=int, default=3, help="measurements of each")
    args, rest = parser.parse_known_args()
    for name, value in vars(args).items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} is {value}; it must be 1 or more")
    if rest and args.kind != "step":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    keep_freed_memory()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from mtl_diffusion.benchmark.programs import race
    from mtl_diffusion.benchmark.steps import time_steps
    from mtl_diffusion.benchmark.timing import time_sampling

    with flags.refusals():
        if args.kind == "step":
            found = time_steps(parse(rest), args.steps, args.rounds, args.warm)
        elif args.kind == "sampling":
            given = (args.batch_size, args.rounds, args.num_inference_steps)
            found = time_sampling(args.pipeline, *given)
        else:
            found = race(args.commands, args.rounds, args.warm)
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
