"""Sort Noto's emoji, PNGs of 64x64 pixels, into folders of classes for configs/emoji.yaml."""

import json
from argparse import ArgumentParser
from pathlib import Path
from random import Random
from shutil import copyfile


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--package",
        type=Path,
        default="package",
        help="the unpacked emoji-datasource-google of npm; default: %(default)s",
    )
    parser.add_argument(
        "--output_dir", type=Path, default="runs/emoji_images", help="default: %(default)s"
    )
    args = parser.parse_args()
    index, images = args.package / "emoji.json", args.package / "img/google/64"
    if not (index.is_file() and images.is_dir()):
        parser.error(
            f"--package: {args.package} must be a folder with emoji.json and img/google/64; get it"
            " with npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-*.tgz"
        )
    for emoji in json.loads(index.read_text(encoding="utf-8")):
        if emoji["category"] == "Component":  # patches of skin and hair
            continue
        # The picture is the key, as flags and families of several names look the same.
        random = Random((images / emoji["image"]).read_bytes())
        split = "test" if random.random() < 0.1 else "train"
        # One skin colour of 5 or 25: with all, six images of ten would be of 386 people and hands.
        skins = [skin["image"] for _, skin in sorted(emoji.get("skin_variations", {}).items())]
        drawn = [skins[int(random.random() * len(skins))]] if skins else []
        folder = args.output_dir / split / emoji["category"]
        folder.mkdir(parents=True, exist_ok=True)
        for name in (emoji["image"], *drawn):
            copyfile(images / name, folder / name)
    print(args.output_dir)


if __name__ == "__main__":
    main()
