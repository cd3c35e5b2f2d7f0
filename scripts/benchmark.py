"""How fast: training, sampling, start-up and memory, beside diffusers' own script and samplers.

python scripts/benchmark.py --config configs/cifar10_cpu.yaml --json speed.json \\
    --pipeline runs/cifar10_cpu/pipeline \\
    --diffusers path/to/diffusers --twin_python path/to/environment/bin/python

Every other flag is one of train.py's. The environment of --twin_python needs what the README of
diffusers' examples/unconditional_image_generation asks for, torchvision among it.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from mtl_diffusion.config import ConfigError, TrainConfig
from mtl_diffusion.config.command_line import parse as parse_config

PARTS = ("training", "sampling", "startup", "steps")
STEP_COUNTS = (4, 6, 8, 12, 18, 24, 36, 50, 72, 100, 150)
DEFAULT_STEPS = 18  # of the pipeline
DDPM_STEPS, DDIM_STEPS = 1000, 50  # the defaults of diffusers' pipelines


def parse() -> tuple[Namespace, TrainConfig]:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all of them")
    add("--rounds", type=int, default=3, help="measurements of each; default: %(default)s")
    add("--steps", type=int, default=40, help="training steps of a program; default: %(default)s")
    add("--warm", type=int, default=10, help="of these, not counted; default: %(default)s")
    add("--diffusers", type=Path, help="checkout of diffusers; none: training has only our rate")
    add("--twin_python", type=Path, help="Python that runs diffusers' script")
    add("--pipeline", help="exported folder or name on the Hub; sampling and first image need it")
    add("--metrics", type=Path, help="metrics.json of scripts/evaluate.py, for its knee")
    add("--sample_batch", type=int, default=16, help="images at once; default: %(default)s")
    add("--json", type=Path, help="file that everything measured is written to")
    args, rest = parser.parse_known_args()
    if (args.diffusers is None) != (args.twin_python is None):
        parser.error("--diffusers and --twin_python go together: give both, or neither")
    if not args.warm < args.steps:
        parser.error(f"--steps is {args.steps}; it must be more than --warm, {args.warm}")
    if args.pipeline is None and "sampling" in args.parts:
        parser.error("sampling needs a --pipeline; or name other --parts")
    try:
        return args, parse_config(rest)
    except ConfigError as error:
        parser.error(str(error))


def main() -> None:
    args, config = parse()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch

    from mtl_diffusion.benchmark.measure import matmul_rate
    from mtl_diffusion.launch.host import choose_threads

    choose_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = config.mixed_precision == "bf16"
    rate = matmul_rate(device, torch.bfloat16 if half else torch.float32)
    found = {
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "precision": config.mixed_precision,
            "matmul_flops_per_second": asdict(rate),
        }
    }
    rows = [("matmul, GFLOP/s", str(rate.times(1e-9)))]
    measures = {"training": training, "steps": steps, "sampling": sampling, "startup": startup}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for part, measure in measures.items():
            if part in args.parts:
                table, found[part] = measure(args, config, Path(folder), rate.median)
                rows += table
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def training(args: Namespace, config: TrainConfig, folder: Path, matmul: float):
    """Both programs, as their READMEs launch them; diffusers' also with as many threads as ours."""
    import torch

    from mtl_diffusion.benchmark import programs
    from mtl_diffusion.benchmark.measure import Spread, interleaved
    from mtl_diffusion.benchmark.twin import build_twin
    from mtl_diffusion.data.images import load_images
    from mtl_diffusion.training.model import build_unet
    from mtl_diffusion.training.vocabulary import build_tokenizer

    where = (config.dataset_name, config.dataset_config_name, config.train_split)
    data = load_images(*where, config.image_column, config.label_column, config.resolution)
    extra = (config.strength_levels, config.reserved_tokens)
    words = build_tokenizer(list(config.shares), data.class_names, *extra).get_vocab()
    twin = build_twin(build_unet(config, len(words)))
    images, batch = args.steps * config.total_batch_size, config.total_batch_size
    if images > len(data):
        raise SystemExit(f"--steps needs {images} images, the dataset has {len(data)}: fewer steps")
    (folder / "images").mkdir()
    programs.write_images(data, images, folder / "images")
    programs.write_twin(twin.unet, folder / "twin")

    def ours(place: Path) -> programs.Timed:
        command = programs.our_command(config, args.steps, place)
        return programs.program(command, place, batch, args.warm)

    def theirs(place: Path, threads: int | None) -> programs.Timed:
        command = programs.their_command(
            args.diffusers, args.twin_python, config, folder / "twin", folder / "images", place
        )
        return programs.program(command, place, batch, args.warm, threads)

    contestants = {"ours": programs.numbered(folder, "ours", ours)}
    if args.diffusers:
        measure = partial(theirs, threads=None)
        contestants["diffusers"] = programs.numbered(folder, "diffusers", measure)
        if not torch.cuda.is_available():  # the launcher leaves one core to a CPU's process
            measure = partial(theirs, threads=torch.get_num_threads())
            name = "diffusers, all threads"
            contestants[name] = programs.numbered(folder, "threads", measure)
    measured = interleaved(contestants, args.rounds, "training")

    flops = dict.fromkeys(contestants, twin.flops) | {"ours": twin.our_flops}
    rows, found = [], {"flops_of_an_image": {"ours": twin.our_flops, "twin": twin.flops}}
    for name, runs in measured.items():
        rate = Spread.of([run.rate for run in runs])
        first = Spread.of([run.first_step for run in runs])
        host = max(run.host_bytes for run in runs)
        on_device = max((run.device_bytes or 0) for run in runs)
        found[name] = {
            "images_per_second": asdict(rate),
            "flops_per_second": asdict(rate.times(flops[name])),
            "mfu": rate.median * flops[name] / matmul,
            "first_log_entry_seconds": asdict(first),
            "host_bytes": host,
            "device_bytes": on_device or None,
        }
        rows += [
            (f"training, {name}: images/s", str(rate)),
            (f"training, {name}: GFLOP/s", str(rate.times(flops[name] / 1e9))),
            (f"training, {name}: of matmul", f"{rate.median * flops[name] / matmul:.1%}"),
            (f"training, {name}: first log entry, s", str(first)),
            (f"training, {name}: memory, MB", f"{host / 1e6:.0f}, GPU {on_device / 1e6:.0f}"),
        ]
    for name in list(measured)[1:]:
        ratio = found["ours"]["images_per_second"]["median"]
        ratio /= found[name]["images_per_second"]["median"]
        per_flop = ratio * twin.our_flops / twin.flops
        found[name]["ours_is_faster"] = {"images": ratio, "flops": per_flop}
        rows.append((f"training, ours against {name}", f"{ratio:.2f}, per FLOP {per_flop:.2f}"))
    return rows, found


def steps(args: Namespace, config: TrainConfig, folder: Path, matmul: float):
    """Our step in its parts, in this process."""
    from mtl_diffusion.benchmark.measure import flops_of_unet
    from mtl_diffusion.benchmark.steps import break_down
    from mtl_diffusion.launch.preflight import begin
    from mtl_diffusion.training.run import build

    config = replace(
        config,
        max_train_steps=1000,
        max_train_minutes=None,
        output_dir=str(folder / "steps"),
        report_to="none",
        push_to_hub=False,
    )
    with begin(config) as accelerator:
        run = build(config, accelerator)
        _, flops = flops_of_unet(run.unet)
        step = break_down(run, max(args.rounds, args.steps - args.warm), args.warm)
        accelerator.end_training()
    speed = flops * config.total_batch_size / step.whole.median
    total = sum(part.median for part in step.parts.values())
    rows = [
        ("step, ms", str(step.whole.times(1e3))),
        ("step, images/s", f"{config.total_batch_size / step.whole.median:.4g}"),
        ("step, GFLOP/s", f"{speed / 1e9:.4g}, {speed / matmul:.1%} of matmul"),
        *(
            (f"step, {name}, ms", f"{part.times(1e3)}, {part.median / total:.1%}")
            for name, part in step.parts.items()
        ),
        ("step, all but forward and backward", f"{step.overhead:.1%}"),
    ]
    return rows, asdict(step) | {
        "overhead": step.overhead,
        "flops_of_an_image": flops,
        "flops_per_second": speed,
        "mfu": speed / matmul,
    }


def sampling(args: Namespace, config: TrainConfig, folder: Path, matmul: float):
    """Ours against plain Euler and Heun steps on the same weights, and diffusers' pipelines."""
    import torch

    from mtl_diffusion.benchmark.measure import flops_of_unet
    from mtl_diffusion.benchmark.sampling import (
        Sampler,
        evaluations_for,
        knee,
        read_curve,
        twin_times,
    )
    from mtl_diffusion.benchmark.twin import build_twin
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = MultiTaskPipeline.from_pretrained(args.pipeline).to(device)
    pipe.set_progress_bar_config(disable=True)
    sampler = Sampler(pipe, args.sample_batch)
    curves = sampler.curve(STEP_COUNTS)
    same = {"ours": DEFAULT_STEPS, "euler": DEFAULT_STEPS, "heun": (DEFAULT_STEPS + 1) // 2}
    times = sampler.times(same, args.rounds)
    each = {name: times[name].median / sampler.evaluations(name, n) for name, n in same.items()}
    forward, _ = flops_of_unet(pipe.unet)
    rows, found = [], {"batch": args.sample_batch, "curves": {}}
    for name, points in curves.items():
        found["curves"][name] = [asdict(point) for point in points]
        found[name] = {"steps": same[name], "seconds_an_image": asdict(times[name])}
        evaluations = sampler.evaluations(name, same[name])
        rows.append((f"sampling, {name}, {evaluations} evaluations: s/image", str(times[name])))
    found["mfu"] = forward / each["ours"] / matmul
    rows.append(("sampling, ours: of matmul", f"{found['mfu']:.1%}"))

    found["equal_quality"] = {}
    for point in curves["ours"]:
        entry = {"distance": point.distance}
        for other in ("euler", "heun"):
            needed = evaluations_for(curves[other], point.distance)
            ratio = needed and needed * each[other] / (point.evaluations * each["ours"])
            entry[other] = {"evaluations": needed, "ours_is_faster": ratio}
        found["equal_quality"][point.steps] = entry
        told = [
            f"{other} {entry[other]['ours_is_faster']:.2f}x"
            if entry[other]["ours_is_faster"]
            else f"{other} more than {STEP_COUNTS[-1]} steps"
            for other in ("euler", "heun")
        ]
        name = f"sampling, as near as ours at {point.steps} ({point.distance:.2g})"
        rows.append((name, ", ".join(told)))
    if args.metrics:
        curve = read_curve(args.metrics)
        found["frechet_distance"] = {"curve": curve, "knee": knee(curve)}
        rows.append(("sampling, knee of the Frechet distance", f"{knee(curve)} evaluations"))

    twin = build_twin(pipe.unet)
    of_twin = twin_times(twin.unet, args.sample_batch, 10, args.rounds, device)
    for name, count in (("ddpm", DDPM_STEPS), ("ddim", DDIM_STEPS)):
        image = of_twin[name].times(count)
        ratio = image.median / times["ours"].median
        found[name] = {"steps": count, "seconds_an_image": asdict(image), "ours_is_faster": ratio}
        rows.append((f"sampling, {name} of the twin, {count} steps: s/image", str(image)))
        rows.append((f"sampling, ours against {name}, each at its default", f"{ratio:.1f}"))
    return rows, found


def startup(args: Namespace, config: TrainConfig, folder: Path, matmul: float):
    """From the start of a process: import, help, the first step, the first image."""
    import torch

    from mtl_diffusion.benchmark import programs
    from mtl_diffusion.benchmark.measure import Spread, interleaved, seconds

    scripts = Path(__file__).parent
    cpu = torch.device("cpu")

    def first_step(place: Path) -> float:
        command = programs.our_command(config, 2, place)
        return programs.program(command, place, config.total_batch_size, 1).first_step

    def run(*command: str) -> float:
        done = partial(subprocess.run, [sys.executable, *command], check=True, capture_output=True)
        return seconds(done, cpu)

    contestants = {
        "import mtl_diffusion": partial(run, "-c", "import mtl_diffusion"),
        "train.py --help": partial(run, str(scripts / "train.py"), "--help"),
        "first step": programs.numbered(folder, "first", first_step),
    }
    if args.pipeline:
        flags = ["--pipeline", args.pipeline, "--output_dir", str(folder / "image")]
        contestants["first image"] = partial(run, str(scripts / "sample.py"), *flags)
    measured = interleaved(contestants, args.rounds, "start-up")
    spreads = {name: Spread.of(values) for name, values in measured.items()}
    rows = [(f"start-up, {name}, s", str(spread)) for name, spread in spreads.items()]
    return rows, {name: asdict(spread) for name, spread in spreads.items()}


if __name__ == "__main__":
    main()
