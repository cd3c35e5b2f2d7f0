"""Write scikit-learn's 1,797 handwritten digits, of 8x8 pixels, for configs/digits.yaml."""

from argparse import ArgumentParser
from pathlib import Path


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output_dir", type=Path, default="runs/digits_images", help="default: %(default)s"
    )
    folder = parser.parse_args().output_dir

    from datasets import ClassLabel, Dataset, Features, Image
    from PIL.Image import fromarray
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype("uint8")  # (N, 8, 8), of 0 to 16
    features = Features(image=Image(), label=ClassLabel(names=[*map(str, digits.target_names)]))
    rows = {"image": [fromarray(grey) for grey in pixels], "label": digits.target}
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    print(folder)


if __name__ == "__main__":
    main()
