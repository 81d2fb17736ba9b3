"""Scenes of 128 px: the picture is where its figure is, and the ground has the colour that the caption names."""

import datasets
import numpy as np
from PIL import Image, ImageDraw

from mezzotint_training.benchmarks import scenes


def test_a_figure_keeps_its_colours_and_what_is_white_in_it(tmp_path):
    """A blue ring around white, up to the edges of its picture: the ground is around it, not within."""
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((0, 0, 63, 63), outline=(0, 0, 200), width=10)
    rows = datasets.Dataset.from_dict(
        {"image": [picture] * 20, "text": [f"ring {i}" for i in range(20)], "number": list(range(20))},
        features=datasets.Features(
            {"image": datasets.Image(), "text": datasets.Value("string"), "number": datasets.Value("int64")}
        ),
    )
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    folder = scenes.write(str(tmp_path / "set"), tmp_path / "scenes")
    made = datasets.load_dataset(str(folder), split="train")
    assert scenes.write(str(tmp_path / "set"), folder) == folder and made["number"] == list(range(20))
    seen = set()
    for row in made:
        words = row["text"].split()
        assert words[:1] + words[2:4] + words[5:] == ["ring", "on", "a", "ground"]
        colour, pixels = scenes.GROUNDS[words[4]], np.asarray(row["image"]).astype(int)
        seen.add(words[4])
        assert pixels.shape == (128, 128, 3)
        blue = np.abs(pixels - (0, 0, 200)).max(2) < 60
        y, x = (places.min() for places in blue.nonzero())
        assert 85 < np.ptp(blue.nonzero()[0]) < 96 and y <= 34 and x <= 34
        assert (pixels[y + 45, x + 45] == 255).all()  # within the ring
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (np.abs(corners - colour) <= 1).all()
    assert len(seen) > 4
