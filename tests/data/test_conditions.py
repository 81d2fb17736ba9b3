"""Conditions of the tasks: their place in an item, their chances, and class maps there and back."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.pipelines.conditions_mezzotint import bits_to_classes, bits_to_shares, class_bits, classes_to_bits
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.conditions import condition_of, random_mask, sample_of, shrunk
from mezzotint_training.data.dataset import make_item
from mezzotint_training.modalities.images import read, read_mask

PIXELS = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MEAN, STD = torch.zeros(3, 1, 1), torch.full((3, 1, 1), 0.5)


def cell(array: np.ndarray, mode: str | None = None) -> dict:
    content = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


@pytest.mark.parametrize("task", ["inpaint", "upscale"])
def test_what_else_is_drawn_for_an_item_is_alike_for_all_tasks(task):
    items = [
        make_item(TrainConfig(dataset_name="digits", task=name), 1, 5, PIXELS, [(1.0, ["a"])], MEAN, STD)
        for name in (task, "text_to_image")
    ]
    condition = items[0].pop("condition")
    assert condition.shape == (4, 8, 8) and items[0].keys() == items[1].keys()
    for name, value in items[1].items():
        assert torch.equal(items[0][name], value) if isinstance(value, torch.Tensor) else items[0][name] == value


def test_conditions_are_a_function_of_their_key_and_dropped_as_often_as_asked():
    config = TrainConfig(dataset_name="digits", task="upscale", proportion_empty_conditions=0.3)
    sample = sample_of(config, PIXELS, MEAN, STD)
    found = [condition_of(config, sample, PIXELS, [0, 0, i, 0]) for i in range(2000)]
    assert torch.equal(found[7], condition_of(config, sample, PIXELS, [0, 0, 7, 0]))
    empty = torch.zeros(4, 8, 8)
    empty[-1] = 1
    share = np.mean([torch.equal(one, empty) for one in found])
    assert abs(share - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 2000)
    levels = np.array([one[-1, 0, 0].item() for one in found if not torch.equal(one, empty)])
    assert abs(levels.mean() - 1 / 3) < 0.03 and abs((levels < 0.25).mean() - 0.5) < 0.05  # of squares
    kept = condition_of(config, sample, PIXELS, [0, 0, 7, 0], drop=False)
    assert 0 < kept[-1, 0, 0] < 1


def test_a_small_picture_has_the_means_of_its_blocks_nearly():
    x = torch.linspace(0, 1, 32).expand(3, 32, 32)
    small = shrunk(x, 4)
    assert small.shape == (3, 8, 8)
    torch.testing.assert_close(small[:, 2:6, 2:6], x.unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4))[:, 2:6, 2:6])


def test_masks_are_of_every_kind():
    rng = np.random.default_rng(0)
    masks = torch.stack([random_mask(rng, 24, 32) for _ in range(600)])
    assert set(masks.unique().tolist()) == {0, 1}
    shares = masks.mean((1, 2))
    assert (shares == 1).float().mean().item() == pytest.approx(0.05, abs=0.03)
    assert (shares == 0.5).float().mean().item() == pytest.approx(0.2, abs=0.06)
    corners = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(1)
    assert ((corners == 4) & (shares < 1)).float().mean() > 0.1  # borders
    assert 0.3 < shares.mean() < 0.6 and shares.min() > 0


@pytest.mark.parametrize("num_classes", [2, 3, 5, 8, 256])
def test_classes_come_back_from_their_bits(num_classes):
    classes = torch.randint(0, num_classes, (2, 1, 6, 5), generator=torch.Generator().manual_seed(0))
    bits = classes_to_bits(classes, num_classes)
    assert bits.shape[1] == class_bits(num_classes) and set(bits.unique().tolist()) <= {-1, 1}
    assert torch.equal(bits_to_classes(bits * 0.1, num_classes), classes[:, 0])
    beyond = bits_to_classes(torch.ones_like(bits), num_classes)  # a code that may be no class
    assert (beyond == num_classes - 1).all()


@pytest.mark.parametrize("num_classes", [2, 5, 8])
def test_shares_of_classes_are_those_of_coins_for_their_bits(num_classes):
    means = torch.rand(1, class_bits(num_classes), 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    uniform = torch.rand(200_000, *means.shape[1:], generator=torch.Generator().manual_seed(1))
    thrown = bits_to_classes((uniform < (1 + means) / 2).float() * 2 - 1, num_classes)
    counted = torch.bincount(thrown.flatten(), minlength=num_classes) / len(uniform)
    shares = bits_to_shares(means, num_classes)
    torch.testing.assert_close(shares[0, :, 0, 0], counted, atol=0.004, rtol=0)
    certain = bits_to_shares(3 * classes_to_bits(torch.arange(num_classes).view(-1, 1, 1, 1), num_classes), num_classes)
    assert torch.equal(certain[:, :, 0, 0], torch.eye(num_classes))


def test_a_picture_and_its_classes_go_through_alike():
    config = TrainConfig(dataset_name="digits", task="segment", num_classes=3, random_flip=True)
    mask = torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels = torch.cat([mask * 100, mask])
    for index in range(8):  # mirrored or not
        item = make_item(config, 0, index, pixels, [(1.0, ["a"])], MEAN[:1], STD[:1])
        if item["condition"][-1, 0, 0] == 1:  # dropped
            continue
        classes = bits_to_classes(item["sample"][None], 3)[0]
        torch.testing.assert_close(item["condition"][0], classes * 100 / 127.5 - 1)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_a_class_map_is_read_and_cropped_as_its_picture(mode):
    mask = np.kron(np.random.default_rng(0).integers(0, 2, (5, 7)), np.ones((4, 4))).astype(np.uint8)
    array = mask * 255
    if mode == "P":
        picture = Image.fromarray(mask)
        picture.putpalette([9, 9, 9, 200, 0, 0])
        content = io.BytesIO()
        picture.save(content, "PNG")
        found = read_mask({"bytes": content.getvalue(), "path": None}, 2, (10, 10))
    else:
        found = read_mask(cell(array, mode), 2, (10, 10))
    picture = read(cell(array), 1, (10, 10))
    assert found.dtype == torch.uint8 and found.shape == (1, 10, 10)
    assert ((picture > 127) == found).float().mean() > 0.97


@pytest.mark.parametrize(
    "array, num_classes, rule",
    [
        (np.full((4, 4), 3), 3, "^class numbers must be below num_classes, 3: got 3$"),
        (np.full((4, 4), 128), 2, "^class numbers must be below num_classes, 2: got 128$"),
        (np.zeros((4, 4, 3)), 2, "^a class map must have one channel of whole numbers up to 255: got mode RGB$"),
    ],
)
def test_what_is_no_class_map_is_refused(array, num_classes, rule):
    with pytest.raises(ValueError, match=rule):
        read_mask(cell(array.astype(np.uint8)), num_classes, (4, 4))
