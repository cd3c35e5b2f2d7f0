"""Tests need no network and write nowhere but to temporary folders."""

import os
import tempfile

# The Hugging Face libraries read these when they are imported, so they are set before any test is.
_cache = tempfile.TemporaryDirectory(prefix="mtl_diffusion-tests-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": _cache.name,
    "HF_DATASETS_CACHE": os.path.join(_cache.name, "datasets"),
}
