"""scripts/task_tokens.py: the held-out loss with every task token."""

import json

import pytest
from in_process import run_script
from PIL import Image
from tables import write_images

from mtl_diffusion.pipeline.pipeline import TASKS


def test_the_script_writes_a_table_and_a_plot(pipe, tmp_path, monkeypatch, capsys):
    pipe.save_pretrained(tmp_path / "pipeline")
    places = [(split, name) for split in ("train", "test") for name in ("cat", "dog", "ship")]
    write_images(tmp_path / "data", *(f"{s}/{name}/{i}.png" for s, name in places for i in "123"))
    given = (
        *("--pipeline", tmp_path / "pipeline", "--dataset_name", tmp_path / "data"),
        *("--num_images", "6", "--output_dir", tmp_path / "out"),
    )
    assert run_script("task_tokens.py", *given, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out/task_tokens.json").read_text())
    assert report["num_images"] == 6 and list(report["loss"]) == list(TASKS)
    for task, tokens in report["loss"].items():
        assert next(iter(tokens)) == task and set(tokens) == {*TASKS, "null"}
        for token, levels in tokens.items():
            for level, entry in levels.items():
                right = tokens[task][level]["loss"]
                assert entry["loss"] - right == pytest.approx(entry["excess"], abs=3e-5)
                assert entry["standard_error"] >= 0 and (token == task) == (entry["excess"] == 0)
    assert Image.open(tmp_path / "out/task_tokens.png").width > 400
    assert printed.count("| wrong: ") == 12 and printed.count("| none |") == 4
