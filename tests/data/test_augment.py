"""Augmentation against numpy's flips, turns and pads where pixels are moved whole, and against the warp of a known
function where they are resampled; what is told of a change against the change itself."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from test_dataset import GOOD, of_files

from mezzotint import MezzotintUNetModel
from mezzotint_training.data.augment import AUGMENT_DIM, augment
from mezzotint_training.data.dataset import collate


class Drawn:
    """A generator whose numbers are given: which of the seven changes are made, and how."""

    def __init__(self, made: str = "", mirrored=0.9, upside_down=0.9, quarters=0, right=0.5, down=0.5, angle=0.5,
                 axis=0.5, tilted=0.0, scale=0.0, stretch=0.0):  # fmt: skip
        names = ("mirrored", "upside_down", "quarters", "shift", "scale", "angle", "stretch")
        assert set(made.split()) <= set(names)
        self.uniform = [np.array([0.0 if name in made.split() else 1.0 for name in names])]
        self.uniform.append(np.array([mirrored, upside_down, quarters / 4, right, down, angle, axis, tilted]))
        self.normal = np.array([scale, stretch])

    def random(self, count: int) -> np.ndarray:
        numbers = self.uniform.pop(0)
        assert len(numbers) == count
        return numbers

    def standard_normal(self, count: int) -> np.ndarray:
        return self.normal


NOISE = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 16, 16), dtype=np.float32))
WIDE = NOISE[:, :8]


def changed(sample: torch.Tensor, made: str, **drawn) -> tuple[np.ndarray, list[float]]:
    result, labels = augment(sample, Drawn(made, **drawn), 0.5)
    assert result.shape == sample.shape and result.dtype == torch.float32 and labels.shape == (AUGMENT_DIM,)
    return result.numpy(), labels.tolist()


def told(**labels) -> list[float]:
    names = ("mirrored", "upside_down", "q1", "q2", "right", "down", "scale", "cos", "sin", "along", "across")
    return pytest.approx([labels.get(name, 0.0) for name in names], abs=1e-6)


@pytest.mark.parametrize("sample", [NOISE, WIDE])
def test_whole_pixels_are_moved_exactly(sample):
    x = sample.numpy()
    height, width = x.shape[1:]
    both = {"mirrored": 0.4, "upside_down": 0.4}
    cases = [
        ("mirrored", {"mirrored": 0.4}, x[:, :, ::-1], told(mirrored=1)),
        ("upside_down", {"upside_down": 0.4}, x[:, ::-1], told(upside_down=1)),
        ("mirrored upside_down", both, x[:, ::-1, ::-1], told(mirrored=1, upside_down=1)),
        ("mirrored upside_down", {}, x, told()),  # chosen to be changed, and drawn to be left
        ("", both | {"quarters": 1, "right": 0, "angle": 0, "scale": 1, "stretch": 1}, x, told()),
    ]  # fmt: skip
    for quarters, labels in ((1, {"q1": 1}), (2, {"q1": 1, "q2": 1}), (3, {"q2": 1})):
        if height == width:
            cases.append(("quarters", {"quarters": quarters}, np.rot90(x, quarters, (1, 2)), told(**labels)))
        else:
            cases.append(("quarters", {"quarters": quarters}, x, told()))
    for right, down in ((1.0, 0.5), (0.0, 0.5), (0.5, 1.0), (0.0, 1.0)):
        across, along = round((2 * right - 1) * width / 8), round((2 * down - 1) * height / 8)
        padded = np.pad(x, ((0, 0), (2, 2), (2, 2)), mode="symmetric")
        moved = padded[:, 2 - along : 2 - along + height, 2 - across : 2 - across + width]
        labels = {"right": across / width * 8, "down": along / height * 8}
        cases.append(("shift", {"right": right, "down": down}, moved, told(**labels)))
    for made, drawn, expected, labels in cases:
        result, got = changed(sample, made, **drawn)
        np.testing.assert_array_equal(result, expected)
        assert got == labels


def picture(height: int, width: int, place) -> torch.Tensor:
    """A smooth function of the place (x to the right, y down, from the centre) in `place`'s picture."""
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = place(x - width / 2, y - height / 2)
    return torch.from_numpy(np.stack([np.sin(x / 7 + 0.3), np.cos(y / 6 - x / 11)])).float()


def turn(angle, x, y):
    return math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y


def stretched(axis, factor, x, y):
    """Each place taken to where the inverse of a stretch by `factor` along `axis`, and 1 / factor across it, has it."""
    along, across = turn(-axis, x, y)
    return turn(axis, along / factor, across * factor)


CASES = [
    ("scale", {"scale": 1.5}, lambda x, y: (x / 2**0.3, y / 2**0.3), told(scale=1.5)),
    ("scale", {"scale": -1}, lambda x, y: (x * 2**0.2, y * 2**0.2), told(scale=-1)),
    ("angle", {"angle": 0.6}, lambda x, y: turn(-0.2 * math.pi, x, y),
     told(cos=math.cos(0.2 * math.pi) - 1, sin=math.sin(0.2 * math.pi))),
    ("stretch", {"stretch": 1, "tilted": 0.9}, lambda x, y: (x / 2**0.2, y * 2**0.2), told(along=1)),
    ("stretch", {"stretch": -2, "axis": 0.75}, lambda x, y: stretched(math.pi / 2, 2**-0.4, x, y), told(across=-2)),
    ("stretch", {"stretch": 1, "axis": 0.6}, lambda x, y: stretched(0.2 * math.pi, 2**0.2, x, y),
     told(along=math.cos(0.2 * math.pi), across=math.sin(0.2 * math.pi))),
    ("scale angle", {"scale": 1, "angle": 0.3}, lambda x, y: turn(0.4 * math.pi, x / 2**0.2, y / 2**0.2),
     told(scale=1, cos=math.cos(0.4 * math.pi) - 1, sin=-math.sin(0.4 * math.pi))),
    ("angle stretch", {"angle": 0.6, "stretch": 1, "tilted": 0.9},  # turned first, stretched then
     lambda x, y: turn(-0.2 * math.pi, x / 2**0.2, y * 2**0.2),
     told(cos=math.cos(0.2 * math.pi) - 1, sin=math.sin(0.2 * math.pi), along=1)),
]  # fmt: skip


@pytest.mark.parametrize("size", [(48, 48), (64, 40)])
@pytest.mark.parametrize("made, drawn, place, labels", CASES)
def test_resampling_is_the_warp_of_the_function(made, drawn, place, labels, size):
    plain = picture(*size, lambda x, y: (x, y))
    result, got = changed(plain, made, **drawn)
    assert got == labels
    expected = picture(*size, place).numpy()
    # where the picture knows it: places that come from inside
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = place(x - size[1] / 2, y - size[0] / 2)
    inside = (abs(x) < size[1] / 2 - 2) & (abs(y) < size[0] / 2 - 2)
    assert inside.mean() > 0.4
    np.testing.assert_allclose(result[:, inside], expected[:, inside], atol=0.02)  # half a pixel would be 0.08
    assert abs(expected - plain.numpy())[:, inside].max() > 0.1


def test_what_comes_in_from_outside_is_the_mirror_image():
    flat = torch.full((1, 8, 8), 3.0)
    result, _ = changed(flat, "scale", scale=-5)
    np.testing.assert_allclose(result, 3, atol=1e-5)
    # at half the size, a column left of the picture's edge is what the one right of it is
    ramp = torch.arange(16.0).expand(1, 16, 16)
    result, _ = changed(ramp, "scale", scale=-5)
    np.testing.assert_allclose(result[0, 8, :4], result[0, 8, 4:8][::-1], atol=1e-5)


def test_changes_come_as_often_as_they_should_and_are_spread_as_in_the_paper():
    rng = np.random.default_rng(0)
    labels = np.stack([augment(NOISE[:1, :8, :8], rng, 0.3)[1].numpy() for _ in range(4000)])
    mirrored, upside_down, q1, q2, right, down, scale, cos, sin, along, across = labels.T

    def share(happened, expected):
        return abs(happened.mean() - expected) <= 4 * (expected * (1 - expected) / len(labels)) ** 0.5

    assert share(mirrored, 0.15) and share(upside_down, 0.15)
    for first, second in ((1, 0), (1, 1), (0, 1)):
        assert share((q1 == first) & (q2 == second), 0.3 / 4)
    assert set(right) == set(down) == {-1, 0, 1} and share(right > 0, 0.3 / 4) and share(down < 0, 0.3 / 4)
    assert share(scale != 0, 0.3) and stats.kstest(scale[scale != 0], "norm").pvalue > 1e-3
    angle = np.arctan2(sin, cos + 1)[sin != 0]
    assert share(sin != 0, 0.3) and stats.kstest(angle, "uniform", args=(-np.pi, 2 * np.pi)).pvalue > 1e-3
    np.testing.assert_allclose((cos + 1) ** 2 + sin**2, 1, atol=1e-6)
    length = np.hypot(along, across)
    assert share(length > 0, 0.3) and stats.kstest(length[length > 0], "halfnorm").pvalue > 1e-3
    assert share((length > 0) & (across != 0), 0.15)  # half are stretched along a tilted axis
    made = np.stack([mirrored, upside_down, q1, right != 0, scale != 0, sin != 0, length > 0])
    assert abs(np.corrcoef(made) - np.eye(7)).max() < 0.07  # each by itself


def test_no_chance_of_a_change_is_no_change():
    result, labels = augment(NOISE, np.random.default_rng(0), 0.0)
    assert torch.equal(result, NOISE) and not labels.any()


def test_items_are_augmented_by_their_own_key_and_unchanged_without():
    files = {"files": [GOOD] * 12, "size": (12, 12), "proportion_empty_prompts": 0.5}
    plain, images, again = of_files(**files), *(of_files(**files, augment_probability=0.5) for _ in range(2))
    seen = []
    for epoch in range(2):
        for row in range(12):
            item, other = images[epoch, row], plain[epoch, row]
            assert "augment_labels" not in other
            assert all(item[name] == other[name] for name in ("caption", "uniform"))
            assert torch.equal(item["noise"], other["noise"])
            assert item["augment_labels"].any() == (not torch.equal(item["sample"], other["sample"]))
            same = again[epoch, row]
            assert torch.equal(item["sample"], same["sample"])
            assert torch.equal(item["augment_labels"], same["augment_labels"])
            seen.append(tuple(item["augment_labels"].tolist()))
    assert len(set(seen)) > 18
    batch = collate([images[0, row] for row in range(12)])
    assert batch["augment_labels"].shape == (12, AUGMENT_DIM)
    unet = MezzotintUNetModel(block_out_channels=(16,), transformer_layers_per_block=(0,), augment_dim=AUGMENT_DIM)
    assert unet(batch["sample"], 3, augment_labels=batch["augment_labels"]).sample.shape == (12, 3, 12, 12)
