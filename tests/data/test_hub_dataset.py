"""A dataset of a Hub: read as `datasets` does, offline from the cache, or not there."""

import sys

import datasets
import pytest
from loopback_hub import LoopbackHub
from tables import encoded, write_parquet

pytestmark = pytest.mark.slow

NAME = "uoft-cs/cifar10"
CLASSES = ["airplane", "automobile", "bird"]
ROWS = {"train": 40, "test": 20}
# The card of a dataset says what its files are; this one is as the Hub's, shortened.
CARD = """---
configs:
- config_name: plain_text
  default: true
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
---
"""

# Whether the images and labels of a split are those that `datasets` gives; and one not there.
CLIENT = """
import sys
import datasets, numpy as np
from mtl_diffusion import TrainConfig
from mtl_diffusion.data.images import DataError, load_split
from mtl_diffusion.pipeline.format import ImageFormat

def load(name):
    return load_split(TrainConfig(dataset_name=name), "train_split", ImageFormat.square(32))

theirs = datasets.load_dataset(sys.argv[1])["train"]
ours = load(sys.argv[1])
assert ours.labels.tolist() == theirs["label"][:]
for image, row in zip(ours.images, theirs, strict=True):
    assert np.array_equal(image.permute(1, 2, 0), row["img"])
print(*ours.class_names)
try:
    load("uoft-cs/none")
except DataError as error:
    print(str(error).splitlines()[0])
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """Path in the repository -> content."""
    folder = tmp_path_factory.mktemp("cifar10")
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    images = encoded(sum(ROWS.values()), side=32)
    for split, count in ROWS.items():
        labels = [i % len(CLASSES) for i in range(count)]
        write_parquet(folder, {"img": images[-count:], "label": labels}, features, split)
    tables = {f"plain_text/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return {"README.md": CARD.encode()} | tables


@pytest.fixture(scope="module")
def hub(files):
    with LoopbackHub() as hub:
        hub.add(NAME, files, kind="dataset")
        yield hub


def load(hub, home, **variables):
    """(The words that the client printed, what the Hub was asked for)."""
    before = len(hub.requests)
    done = hub.run([sys.executable, "-c", CLIENT, NAME], home, **variables)
    assert done.returncode == 0, done.stderr
    classes, refused = done.stdout.splitlines()[-2:]
    assert refused.startswith("dataset_name: 'uoft-cs/none'")
    return classes.split(), [r for r in hub.requests[before:] if "uoft-cs/none" not in r]


def test_it_is_read_as_datasets_reads_it_and_from_the_cache_when_offline(hub, tmp_path):
    classes, requests = load(hub, tmp_path)
    assert classes == CLASSES
    downloads = [r for r in requests if r.startswith("GET") and ".parquet" in r]
    assert len(downloads) == len(ROWS)  # each file once
    assert load(hub, tmp_path, HF_HUB_OFFLINE="1") == (CLASSES, [])
