"""Does the model use its task token? Its held-out loss with the right, each wrong and no token.

    python scripts/task_tokens.py --pipeline runs/quickstart/pipeline --dataset_name shapes \\
        --output_dir runs/quickstart/task_tokens

Writes task_tokens.json and task_tokens.png, and prints the table. Every token sees the same images,
noise, masks and strengths, so a loss is compared with that of the right token image by image; +- is
the standard error of the mean of these differences.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

NULL = "null"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pipeline", required=True, help="exported folder, or a name on the Hub")
    add("--dataset_name", required=True, help='"shapes", a dataset on the Hub, or a local folder')
    add("--dataset_config_name", help="the configuration, where the dataset has several")
    add("--validation_split", default="test", help="held-out split; default: %(default)s")
    add("--image_column", help="default: the one column of images")
    add("--label_column", help="default: the one column of classes")
    add("--num_images", type=int, default=1000, help="default: %(default)s")
    add(
        "--alike",
        action="store_true",
        help="every task paints the whole image, with the same noise and, where it takes one, the"
        " same strengths, drawn from 0 to 1; default: each task draws as in training",
    )
    add("--seed", type=int, default=0, help="keys the noise and the tasks; default: %(default)s")
    add("--output_dir", required=True, help="where the table and the plot are written")
    return parser.parse_args()


def main() -> None:
    args = parse()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch
    from tqdm.auto import tqdm

    from mtl_diffusion.data.images import load_images
    from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
    from mtl_diffusion.training.validation import held_out_loss

    pipe = MultiTaskPipeline.from_pretrained(args.pipeline)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    data = load_images(
        args.dataset_name,
        args.dataset_config_name,
        args.validation_split,
        args.image_column,
        args.label_column,
        pipe.size,
        split_field="validation_split",
    )
    if strangers := set(data.class_names) - set(pipe.class_names):
        sys.exit(f"--dataset_name: the model doesn't know its classes {', '.join(strangers)}")
    data = data.relabelled(pipe.class_names)

    losses = {
        token or NULL: held_out_loss(
            pipe.unet,
            pipe.scheduler,
            [TASKS[name] for name in pipe.tasks],
            pipe.vocabulary,
            data,
            args.num_images,
            args.seed,
            task_token=token,
            alike=args.alike,
            device=pipe.device,
        )
        for token in tqdm([*pipe.tasks, None], desc="Tokens")
    }
    table = compare(losses)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "pipeline": args.pipeline,
        "dataset_name": args.dataset_name,
        "fingerprint": data.fingerprint,
        "num_images": losses[NULL].num_images,
        "seed": args.seed,
        "alike": args.alike,
        "loss": table,
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task_tokens.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(table, folder / "task_tokens.png")
    show(table)
    print(f"{report['num_images']} images, seed {args.seed}. Written to {folder}")


def compare(losses: dict) -> dict:
    """token -> HeldOutLoss, as task -> token -> level -> mean, and excess over the right token."""
    table = {}
    for i, task in enumerate(losses[NULL].tasks):
        right = losses[task].by_image[i]  # (K, N)
        tokens = [task, *(token for token in losses if token != task)]
        table[task] = {}
        for token in tokens:
            excess = losses[token].by_image[i] - right
            error = excess.std(1) / excess.shape[1] ** 0.5
            table[task][token] = {
                level: {
                    "loss": round(losses[token].model[i, k].item(), 5),
                    "excess": round(excess[k].mean().item(), 5),
                    "standard_error": round(error[k].item(), 5),
                }
                for k, level in enumerate(losses[NULL].levels)
            }
    return table


def show(table: dict) -> None:
    """The table as Markdown: the loss with the right token, and how much more the others have."""
    levels = list(next(iter(next(iter(table.values())).values())))
    print(f"\n| task | token | {' | '.join(levels)} |\n|---|---|{'---|' * len(levels)}")
    for task, tokens in table.items():
        for token, entries in tokens.items():
            cells = [
                f"{e['loss']:.4f}"
                if token == task
                else f"{e['excess']:+.4f} +- {e['standard_error']:.4f}"
                for e in entries.values()
            ]
            kind = "right" if token == task else "none" if token == NULL else f"wrong: {token}"
            print(f"| {task} | {kind} | {' | '.join(cells)} |")
    print()


def plot(table: dict, path: Path) -> None:
    """A panel a task: how much more loss than with the right token, in percent, by noise level."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(table), figsize=(4.2 * len(table), 3.6), squeeze=False, layout="constrained"
    )
    for panel, (task, tokens) in zip(panels[0], table.items(), strict=True):
        levels = list(tokens[task])
        right = [tokens[task][level]["loss"] for level in levels]
        for token, entries in tokens.items():
            if token == task:
                continue
            pairs = list(zip(entries.values(), right, strict=True))
            panel.errorbar(
                range(len(levels)),
                [100 * entry["excess"] / loss for entry, loss in pairs],
                [100 * entry["standard_error"] / loss for entry, loss in pairs],
                marker="o",
                capsize=2,
                linestyle="--" if token == NULL else "-",
                label="no token" if token == NULL else token,
            )
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_xticks(range(len(levels)), levels, rotation=45, ha="right")
        panel.set(title=task, xlabel="sigma", ylabel="more loss than with the right token, %")
        panel.legend(title="told instead")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
