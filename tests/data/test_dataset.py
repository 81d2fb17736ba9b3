"""Data: what becomes of a picture and its captions, and that what happens to a row in an epoch depends on the seed, the
epoch and the row alone."""

import io
import itertools
import struct
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tiny_run import digits, pictures
from torch.utils.data import DataLoader

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data import dataset as data
from mezzotint_training.data import rows
from mezzotint_training.data.batches import KeyedBatches
from mezzotint_training.data.dataset import CaptionedSamples, collate
from mezzotint_training.data.digits import DIGIT_NAMES
from mezzotint_training.data.rows import NUMBER, held_out, load_splits

NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cached_here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(rows, "digits", digits)


def of_digits(channels: int = 1, size=(8, 8), **settings) -> CaptionedSamples:
    config = TrainConfig(dataset_name="digits", **{"num_validation_samples": 0} | settings)
    return CaptionedSamples(held_out(config, load_splits(config))[0], config, channels, size)


def of_files(files: list[bytes | None], channels: int = 3, size=(12, 8), captions=None, **settings) -> CaptionedSamples:
    """A set of files' contents."""
    config = TrainConfig(train_data_dir="none", **settings)
    images = [file and {"bytes": file, "path": None} for file in files]
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    columns = {"image": images, "text": captions or ["a"] * len(files)}
    return CaptionedSamples(datasets.Dataset.from_dict(columns, features=features), config, channels, size)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------- normalisation


def test_the_statistics_normalise_to_unit_variance():
    images = of_digits(max_train_samples=300)
    pixels = np.stack([np.asarray(x) for x in digits()["train"][:300]["image"]]) / 127.5 - 1
    (mean,), (std,) = images.statistics()
    assert (mean, std) == (round(pixels.mean(), 4), round(pixels.std(), 4))
    images.mean, images.std = torch.tensor([[[mean]]]), torch.tensor([[[std]]])
    samples = torch.stack([images[0, i]["sample"] for i in range(len(images))])
    assert samples.mean().item() == pytest.approx(0, abs=1e-3) and samples.std().item() == pytest.approx(1, abs=1e-3)


def test_each_channel_has_its_own_statistics():
    rng = np.random.default_rng(0)
    low, spread = np.array([0, 100, 200]), np.array([255, 100, 10])
    arrays = [(low + spread * rng.random((12, 8, 3))).astype(np.uint8) for _ in range(5)]
    images = of_files([encoded(Image.fromarray(x)) for x in arrays])
    pixels = np.stack(arrays).reshape(-1, 3) / 127.5 - 1
    mean, std = images.statistics()
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(std, pixels.std(0), atol=1e-4)
    images.mean, images.std = torch.tensor(mean).reshape(3, 1, 1), torch.tensor(std).reshape(3, 1, 1)
    samples = torch.stack([images[0, i]["sample"] for i in range(5)])
    np.testing.assert_allclose(samples.std((0, 2, 3), correction=0), 1, rtol=1e-2)
    np.testing.assert_allclose(samples.mean((0, 2, 3)), 0, atol=1e-2)


def test_pictures_of_one_colour_do_not_divide_by_zero():
    mean, std = of_files([encoded(Image.new("RGB", (8, 12), "red"))]).statistics()
    assert mean == [1, -1, -1] and std == [0.01] * 3


# --------------------------------------------------------------------------------------------------- keyed randomness


def items(images: CaptionedSamples, batches: list[list[tuple[int, int]]], workers: int = 0) -> dict:
    """The items of batches of keys, by key."""
    found = {}
    loader = DataLoader(images, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    for keys, batch in zip(batches, loader, strict=True):
        for i, key in enumerate(keys):
            found[key] = (batch["captions"][i], *(batch[name][i] for name in ("sample", "noise", "uniform")))
    return found


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key][0] == b[key][0] and all(torch.equal(x, y) for x, y in zip(a[key][1:], b[key][1:], strict=True))


def test_an_item_depends_on_seed_epoch_and_row_alone(monkeypatch):
    settings = {"max_train_samples": 24, "random_flip": True, "proportion_empty_prompts": 0.3}
    keys = [(epoch, row) for epoch in (0, 3) for row in range(24)]
    images = of_digits(**settings)
    images.read_all(progress=False)
    expected = items(images, [keys])
    shuffled = [keys[i] for i in np.random.default_rng(0).permutation(len(keys))]
    assert_same(items(images, [shuffled[i : i + 7] for i in range(0, len(keys), 7)]), expected)
    assert_same(items(images, [shuffled[i : i + 5] for i in range(0, len(keys), 5)], workers=2), expected)
    assert_same(items(of_digits(**settings | {"max_train_samples": 200}), [keys]), expected)  # nothing read ahead

    monkeypatch.setattr(data, "CACHE_BYTES", 24 * 64 - 1)
    images = of_digits(**settings)
    images.read_all(progress=False)
    assert images.cache is None
    assert_same(items(images, [keys]), expected)

    # and on each of the three
    changed = items(of_digits(**settings, seed=1), [keys])
    for key, item in expected.items():
        other_epoch, other_row = expected[3 - key[0], key[1]], expected[key[0], 23 - key[1]]
        for other in (changed[key], other_epoch, other_row):
            assert not torch.equal(item[2], other[2]) and item[3] != other[3]
    assert any(a[0] != b[0] for a, b in zip(expected.values(), changed.values(), strict=True))


@pytest.fixture(scope="module")
def draws() -> dict[str, np.ndarray]:
    """What is drawn for 1,498 rows in 3 epochs, at a third of captions dropped."""
    config = TrainConfig(dataset_name="digits", proportion_empty_prompts=0.2, random_flip=True)
    undecoded = digits()["train"].cast_column("image", datasets.Image(decode=False))
    images = CaptionedSamples(undecoded, config, 1, (8, 8))
    images.read_all(progress=False)
    drawn = [[images[epoch, row] for row in range(len(images))] for epoch in range(3)]
    pixels = [images.content(row) / 127.5 - 1 for row in range(len(images))]
    return {
        "noise": np.array([[item["noise"].numpy().ravel() for item in epoch] for epoch in drawn]),  # (3, 1498, 64)
        "uniform": np.array([[item["uniform"] for item in epoch] for epoch in drawn]),  # (3, 1498)
        "caption": np.array([[item["caption"] for item in epoch] for epoch in drawn]),
        "flipped": np.array([[not torch.equal(i["sample"], p) for i, p in zip(e, pixels, strict=True)] for e in drawn]),
    }


def within(share: float, expected: float, count: int) -> bool:
    """Whether a share of `count` independent draws is within four standard deviations of what it should be."""
    return abs(share - expected) <= 4 * (expected * (1 - expected) / count) ** 0.5


def test_noise_is_standard_normal_and_never_the_same(draws):
    noise = draws["noise"]
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(noise.mean()) < 4 / noise.size**0.5 and abs(noise.var() - 1) < 4 * (2 / noise.size) ** 0.5
    flat = noise.reshape(-1, 64)
    norms = (flat**2).sum(1)  # chi-squared if the 64 are independent of each other
    assert stats.kstest(norms, "chi2", args=(64,)).pvalue > 1e-3
    for a, b in ((flat[:-1], flat[1:]), (noise[0], noise[1]), (noise[0], noise[2]), (flat[:, :-1], flat[:, 1:])):
        assert abs((a * b).mean()) < 4 / a.size**0.5  # rows, epochs and pixels know nothing of each other


def test_noise_levels_are_uniform(draws):
    uniform = draws["uniform"]
    assert uniform.min() >= 0 and uniform.max() < 1 and stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    for a, b in ((uniform[0], uniform[1]), (uniform.ravel()[:-1], uniform.ravel()[1:])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / a.size**0.5


def test_captions_are_dropped_and_chosen_as_often_as_they_should(draws):
    captions = draws["caption"]
    empty = captions == ""
    assert within(empty.mean(), 0.2, empty.size)
    kinds = Counter("handwritten" if "a h" in c else "digit" if "the d" in c else "number" for c in captions[~empty])
    assert all(within(count / (~empty).sum(), 1 / 3, (~empty).sum()) for count in kinds.values()) and len(kinds) == 3
    # of its own row
    names = [DIGIT_NAMES[x] for x in digits()["train"]["label"]]
    numbers = [str(x) for x in digits()["train"]["label"]]
    assert all(
        c in ("", f"a handwritten {name}", f"the digit {name}", number)
        for epoch in captions
        for c, name, number in zip(epoch, names, numbers, strict=True)
    )
    # which it is, and whether it is dropped, says nothing of its noise level, nor of the next epoch
    for chosen in (empty, np.char.startswith(captions, "a h"), np.char.startswith(captions, "the d")):
        assert abs(draws["uniform"][chosen].mean() - 0.5) < 4 * (1 / 12 / chosen.sum()) ** 0.5
    assert within((empty[0] & empty[1]).mean(), 0.04, empty[0].size)


def test_half_of_the_pictures_are_mirrored(draws):
    assert within(draws["flipped"].mean(), 0.5, draws["flipped"].size)
    plain, mirrored = of_digits(), of_digits(random_flip=True)
    for row in range(20):
        sample, other = plain[0, row]["sample"], mirrored[0, row]["sample"]
        assert torch.equal(other, sample.flip(2) if draws["flipped"][0, row] else sample)


@pytest.mark.parametrize("share", [0, 1])
def test_dropping_all_or_none(share):
    images = of_digits(proportion_empty_prompts=share, max_train_samples=100)
    assert {images[0, row]["caption"] == "" for row in range(100)} == {bool(share)}


def test_rows_keep_the_numbers_that_they_have_in_the_split():
    config = TrainConfig(dataset_name="digits", on_bad_row="skip")
    trained, held = held_out(config, load_splits(config))
    assert len(trained) == 1498 - 74 and len(held) == 74
    undecoded = digits()["train"].cast_column("image", datasets.Image(decode=False))
    images, others, whole = (CaptionedSamples(x, config, 1, (8, 8)) for x in (trained, held, undecoded))
    assert sorted([*images.numbers, *others.numbers]) == list(range(1498))
    for part in (images, others):
        for position in (0, 40, len(part) - 1):
            item, same = part[3, position], whole[3, int(part.numbers[position])]
            assert torch.equal(item["sample"], same["sample"]) and torch.equal(item["noise"], same["noise"])
            assert item["caption"] == same["caption"]
    bad = of_files([None] * 4).rows.add_column(NUMBER, np.arange(1000, 1004))
    with pytest.raises(UserError, match="no row could be read; the first: picture in row 1000 cannot be read: there"):
        CaptionedSamples(bad, config, 1, (8, 8)).read_all(progress=False)


# ------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_is_its_items_in_order():
    items = [
        {"sample": torch.full((1, 2, 2), i), "noise": torch.full((1, 2, 2), -i), "uniform": i / 4, "caption": str(i)}
        | {"bad": ["x"] * (i % 2), "augment_labels": torch.full((11,), i)}
        for i in range(3)
    ]
    batch = collate(items)
    assert batch["captions"] == ["0", "1", "2"] and batch["bad"] == ["x"]
    assert batch["sample"].shape == (3, 1, 2, 2) and batch["sample"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch["noise"][:, 0, 0, 0].tolist() == [0, -1, -2]
    assert batch["uniform"].dtype == torch.float32 and batch["uniform"].tolist() == [0, 0.25, 0.5]
    assert batch["augment_labels"].tolist() == [[0] * 11, [1] * 11, [2] * 11]


# ------------------------------------------------------------------------------------------------------------ pictures


def test_a_sample_is_the_picture_in_channels_rows_and_columns():
    images = of_files([encoded(Image.fromarray(NOISE))])
    assert images.content(0).shape == (3, 12, 8) and images.content(0).dtype == torch.uint8
    np.testing.assert_allclose(images[0, 0]["sample"], NOISE.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_only_grey_and_colour_are_possible():
    with pytest.raises(UserError, match="pictures of 1 or 3 channels: got 4"):
        of_files([b""], channels=4)


# ------------------------------------------------------------------------------------------------------------- buckets

BUCKETS = [(8, 8), (4, 16), (16, 4)]


def bucketed(**settings) -> CaptionedSamples:
    """Pictures 16x16, 8x30, 40x10, 20x20 and 10x42, each of one colour with a stripe at its left edge."""
    files = []
    for number, (height, width) in enumerate(((16, 16), (8, 30), (40, 10), (20, 20), (10, 42))):
        picture = Image.new("RGB", (width, height), (20 * number, 0, 0))
        files.append(encoded(picture))
    made = of_files(files, size=(8, 8), captions=list("abcde"), proportion_empty_prompts=0, **settings)
    return CaptionedSamples(made.rows, made.config, 3, (8, 8), BUCKETS)


@pytest.mark.parametrize("cached", [True, False])
def test_each_picture_is_brought_to_the_size_nearest_to_its_shape(monkeypatch, cached):
    if not cached:
        monkeypatch.setattr(data, "CACHE_BYTES", 5 * 3 * 64 - 1)
        monkeypatch.setattr(
            "mezzotint_training.modalities.images.read", lambda *_: pytest.fail("decoded to learn its size")
        )
    images = bucketed()
    images.read_all(progress=False)
    monkeypatch.undo()
    assert (images.cache is not None) == cached
    assert images.bucket.tolist() == [0, 1, 2, 0, 1] and images.size == (8, 8)
    for row, (height, width) in enumerate(((8, 8), (4, 16), (16, 4), (8, 8), (4, 16))):
        item = images[0, row, 3]
        assert item["sample"].shape == item["noise"].shape == (3, height, width)
        assert ((item["sample"][0] + 1) * 127.5).round().unique().tolist() == [20 * row]


def test_a_batch_of_one_update_is_of_one_size_and_copies_differ_in_all_that_is_drawn():
    images = bucketed()
    images.read_all(progress=False)
    keys = itertools.islice(KeyedBatches(5, 4, 1, 0, 1, 0, 0, images.bucket[images.good]), 3)
    shapes = [tuple(collate([images[key] for key in batch])["sample"].shape) for batch in keys]
    assert sorted(shapes) == [(4, 3, 4, 16), (4, 3, 8, 8), (4, 3, 16, 4)]
    first, plain, copy = images[0, 2, 0], images[0, 2], images[0, 2, 1]
    assert torch.equal(first["noise"], plain["noise"]) and first["uniform"] == plain["uniform"]
    assert not torch.equal(first["noise"], copy["noise"]) and first["uniform"] != copy["uniform"]


def test_the_size_of_a_turned_picture_is_that_of_the_upright_one_and_bad_headers_are_bad_rows():
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded(Image.new("RGB", (10, 40)), kind, exif=exif) for kind in ("PNG", "JPEG", "WEBP", "TIFF")]
    made = of_files([*files, b"words"], on_bad_row="skip")
    images = CaptionedSamples(made.rows, made.config, 3, (8, 8), BUCKETS)
    images.read_all(progress=False)
    assert images.bucket[:4].tolist() == [1] * 4 and images.good.tolist() == [0, 1, 2, 3] and images.size == (4, 16)
    assert images.bad == ["picture in row 4 cannot be read: cannot identify image file"]


def test_a_late_bad_picture_is_replaced_by_one_of_its_bucket(monkeypatch):
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    wide, tall = (encoded(Image.fromarray(np.tile(NOISE, shape))) for shape in ((1, 8, 1), (4, 1, 1)))
    made = of_files([tall, wide[: len(wide) // 2], tall, wide, tall], captions=list("abcde"), on_bad_row="skip",
                    proportion_empty_prompts=0)  # fmt: skip
    images = CaptionedSamples(made.rows, made.config, 3, (8, 8), BUCKETS)
    images.read_all(progress=False)
    assert images.bucket.tolist() == [2, 1, 2, 1, 2] and len(images) == 5
    assert all(images[epoch, 1]["caption"] == "d" for epoch in range(10))
    assert images[0, 1]["sample"].shape == (3, 4, 16) and len(images[0, 1]["bad"]) == 1


# -------------------------------------------------------------------------------------------------------- bad pictures

GOOD = encoded(Image.fromarray(NOISE))
EXIF = struct.pack(">HHHIHHHHI4sI", 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 4, b"abc", 0)  # orientation 6, resolution "abc"
BAD = {
    "no picture": b"words",
    "cut short": GOOD[:100],
    "damaged": GOOD[:60] + bytes(20) + GOOD[80:],
    "empty": b"",
    "none": None,
    # a resolution that is no number, over which Pillow stumbles with a TypeError where it turns the picture
    "strange EXIF": encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + EXIF),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_stops_or_is_counted(kind):
    files = [GOOD, GOOD, BAD[kind], GOOD]
    with pytest.raises(UserError, match=r"^picture in row 2 cannot be read: .*; --on_bad_row skip goes on without it$"):
        of_files(files).read_all(progress=False)
    images = of_files(files, captions=list("abcd"), on_bad_row="skip", proportion_empty_prompts=0)
    images.read_all(progress=False)
    assert len(images) == 3 and len(images.bad) == 1 and images.bad[0].startswith("picture in row 2 cannot be read: ")
    assert [images[0, position]["caption"] for position in range(3)] == ["a", "b", "d"]
    assert images.statistics() == of_files([GOOD]).statistics()
    whole = of_files([GOOD] * 4)  # the others are as they would be without it
    for position, row in enumerate([0, 1, 3]):
        assert torch.equal(images[0, position]["noise"], whole[0, row]["noise"])


def test_a_bad_picture_found_late_gives_its_place_to_another(monkeypatch):
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    settings = {"on_bad_row": "skip", "proportion_empty_prompts": 0}
    files = [encoded(Image.new("RGB", (8, 12), (i, 0, 0))) for i in range(8)]
    files[2] = files[5] = b"words"

    def fresh() -> CaptionedSamples:
        images = of_files(files, captions=list("abcdefgh"), **settings)
        images.read_all(progress=False)
        assert len(images) == 8 and images.bad == []
        return images

    whole = of_files([file if file != b"words" else GOOD for file in files], **settings)
    keys = [(epoch, row) for epoch in range(8) for row in range(8)]
    expected = items(fresh(), [keys])
    seen = set()
    for (epoch, row), (caption, sample, noise, uniform) in expected.items():
        item = whole[epoch, row]  # its noise is its own
        assert torch.equal(noise, item["noise"]) and uniform.item() == pytest.approx(item["uniform"])
        assert sample[0, 0, 0].item() == pytest.approx("abcdefgh".index(caption) / 127.5 - 1)  # of one row, both
        assert caption not in "cf" and (row in (2, 5) or caption == "abcdefgh"[row])
        if row in (2, 5):
            seen.add(caption)
    assert len(seen) > 3  # not always the same one
    # whatever the batch, the worker, and what was met before
    backwards = [keys[i : i + 4] for i in range(60, -1, -4)]
    assert_same(items(fresh(), backwards), expected)
    assert_same(items(fresh(), backwards, workers=2), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_late_bad_rows_are_told_of_in_the_batch_and_count_once(monkeypatch, workers):
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    images = of_files([GOOD, b"words", GOOD, b"more"], on_bad_row="skip")
    images.read_all(progress=False)
    batches = list(DataLoader(images, 4, sampler=[(e, i) for e in range(3) for i in range(4)], collate_fn=collate,
                              num_workers=workers))  # fmt: skip
    assert all(batch["sample"].shape == (4, 3, 12, 8) for batch in batches)
    met = dict.fromkeys(line for batch in batches for line in batch["bad"])
    assert sorted(line.split(" cannot")[0] for line in met) == ["picture in row 1", "picture in row 3"]
    assert all(len(batch["bad"]) >= 2 for batch in batches)  # whoever resumes there learns of them too


def test_pictures_that_are_all_bad_late_stop_the_run(monkeypatch):
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    images = of_files([b"words", b"more"], on_bad_row="skip")
    images.read_all(progress=False)
    with pytest.raises(UserError, match="^no picture could be read; the first: picture in row 1 cannot be read"):
        images[0, 1]


def test_a_set_without_a_good_picture_is_refused():
    with pytest.raises(UserError, match="no row could be read; the first: picture in row 0 cannot be read"):
        of_files([b"words", b"more"], on_bad_row="skip").read_all(progress=False)


def test_a_missing_file_is_named(tmp_path):
    folder = pictures(tmp_path / "set", count=3)
    (folder / "1.png").unlink()
    config = TrainConfig(train_data_dir=str(folder))
    with pytest.raises(UserError, match="picture in row 1 .*1.png.* cannot be read"):
        CaptionedSamples(held_out(config, load_splits(config))[0], config, 3, (8, 8)).read_all(progress=False)
