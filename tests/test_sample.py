"""The sampling program against the pipeline called by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint import MezzotintPipeline
from mezzotint_training import cli


@pytest.fixture
def folder(make_pipe, tmp_path):
    make_pipe().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def sample(*argv) -> int:
    return cli.main(["sample", *map(str, argv), "--device", "cpu"])


def test_a_picture_is_the_pipelines(folder, tmp_path, capsys):
    argv = ["--output", tmp_path / "boot.png", "--num_inference_steps", 3, "--guidance_scale", 1.5, "--seed", 4]
    assert sample(folder, "a red boot", *argv, "--negative_prompt", "green") == 0
    assert capsys.readouterr().out == f"1 picture of 8x8: {tmp_path / 'boot.png'}\n"
    pipe = MezzotintPipeline.from_pretrained(folder)
    settings = {"num_inference_steps": 3, "guidance_scale": 1.5, "negative_prompt": "green"}
    expected = pipe("a red boot", generator=[torch.Generator().manual_seed(4)], **settings).images[0]
    np.testing.assert_array_equal(Image.open(tmp_path / "boot.png"), expected)
    other = pipe("a red boot", generator=torch.Generator().manual_seed(5), **settings).images[0]
    assert not np.array_equal(other, expected)


def test_prompts_are_rows_and_their_pictures_columns(folder, tmp_path, capsys):
    size = ["--height", 12, "--width", 10, "--num_inference_steps", 2, "--num_images_per_prompt", 3]
    assert sample(folder, "a red boot", "7", *size, "--output", tmp_path / "grid.png") == 0
    assert "6 pictures of 10x12" in capsys.readouterr().out
    pipe = MezzotintPipeline.from_pretrained(folder)
    settings = {"height": 12, "width": 10, "num_inference_steps": 2, "num_images_per_prompt": 3}
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    expected = pipe(["a red boot", "7"], generator=generators, **settings).images
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (24, 30, 3)
    for i, picture in enumerate(expected):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(grid[12 * row : 12 * row + 12, 10 * column : 10 * column + 10], picture)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["{tmp}/none/at/all", "a"], "{tmp}/none/at/all"),
        (["{tmp}", "a"], "model_index.json"),
        (["{tmp}/tiny", "a", "--height", "0"], "height must be a positive whole number: got 0"),
        (
            ["{tmp}/tiny", "a", "--num_inference_steps", "0"],
            "num_inference_steps must be a positive whole number: got 0",
        ),
        (["{tmp}/tiny", "a", "--num_inference_steps", "1", "--output", "{tmp}/none/x.png"], "none/x.png"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(folder, tmp_path, capsys, argv, words):
    before = sorted(tmp_path.rglob("*"))
    assert sample(*(x.format(tmp=tmp_path) for x in argv)) == 2
    err = [x for x in capsys.readouterr().err.splitlines() if x and "it/s" not in x]  # but for progress bars
    assert len(err) == 1 and err[0].startswith("mezzotint: ") and words.format(tmp=tmp_path) in err[0]
    assert sorted(tmp_path.rglob("*")) == before
