"""The lint report against sets whose every oddity is known."""

import io
from statistics import median

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.lint import lint
from mezzotint_training.data.rows import NUMBER, bad_captions, cells
from mezzotint_training.modalities import images as pictures

SIZES = [(16, 16), (16, 33), (33, 16), (7, 16), (16, 31), (20, 20), (16, 16), (16, 16), (16, 16)]
CAPTIONS = ["a", ["b", "b", ""], "é" * 5, "  ", "a\0", "line\nbreak", "a", "z" * 10, "z" * 9]


def file_of(number: int, size: tuple[int, int], frames: int = 1) -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(number)
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(frames)]
    pictures[0].save(file, "PNG", save_all=True, append_images=pictures[1:])
    return file.getvalue()


def odd(path: str | None = None, buckets=None, **settings) -> CaptionedSamples:
    """Nine rows, the seventh of which has the first's picture and the eighth an animated one."""
    files = [file_of(number, size) for number, size in enumerate(SIZES)]
    files[6], files[7] = files[0], file_of(7, SIZES[7], frames=3)
    cells = [{"bytes": file, "path": None} for file in files]
    if path is not None:
        for number, file in enumerate(files):
            (path / f"{number}.png").write_bytes(file)
        cells = [{"bytes": None, "path": str(path / f"{number}.png")} for number in range(len(files))]
    features = datasets.Features(
        {"image": datasets.Image(decode=False)} | {"text": datasets.List(datasets.Value("string"))}
    )
    texts = [[caption] if isinstance(caption, str) else caption for caption in CAPTIONS]
    rows = datasets.Dataset.from_dict({"image": cells, "text": texts}, features=features)
    config = TrainConfig(train_data_dir="none", **settings)
    return CaptionedSamples(rows.add_column(NUMBER, np.arange(100, 109)), config, 3, (16, 16), buckets)


@pytest.mark.parametrize("on_disk", [False, True])
def test_every_oddity_is_found_and_nothing_is_decoded(tmp_path, monkeypatch, on_disk):
    images = odd(tmp_path if on_disk else None)
    for name in ("read", "open_picture"):
        monkeypatch.setattr(pictures, name, lambda *_: pytest.fail("decoded"))
    found = lint(images, max_text_length=10)
    assert (found.columns, found.rows, found.looked_at, found.dropped) == (("image", "text"), 9, 9, [])
    heights, widths = zip(*SIZES, strict=True)
    assert found.measures == {"heights": (7, 16, 33), "widths": (16, median(widths), 33)} and median(heights) == 16
    assert found.captions_each == (1, 1, 3) and found.different_captions == 9
    lengths = [2, 2, 2, 1, 11, 3, 3, 11, 2, 11, 10]  # bytes, and one for the end
    assert found.caption_lengths == (1, median(lengths), 11)
    assert found.buckets == {(16, 16): 9}
    assert sorted(found.findings) == [
        ("a caption of more than 10 tokens, which is cut there", 3, [102, 105, 107]),
        ("a caption with control characters", 1, [104]),
        ("a picture of several frames, of which the first is used", 1, [107]),
        ("a picture of which more than half is cropped", 3, [101, 102, 103]),
        ("a picture smaller than it is trained at", 1, [103]),
        ("a picture that an earlier row has too", 1, [106]),
        ("an empty caption", 2, [101, 103]),
    ]


def test_lengths_are_counted_as_the_tokenizer_does():
    found = lint(odd(), 10, count_tokens=lambda text: 100 * len(text))
    assert found.caption_lengths == (0, 200, 1000)
    assert ("a caption of more than 10 tokens, which is cut there", 9, [100, 101, 102, 103, 104]) in found.findings


def test_only_so_many_rows_are_looked_at():
    found = lint(odd(), 10, limit=3)  # the first, the middle one and the last
    assert (found.rows, found.looked_at) == (9, 3) and found.different_captions == 3
    assert found.findings == [("a caption with control characters", 1, [104])]


def test_dropped_rows_are_told_with_their_reasons_and_not_counted():
    images = odd(on_bad_row="skip")
    rows = images.rows.to_dict()
    rows["text"][3], rows["image"][5] = None, {"bytes": b"words", "path": None}
    images = CaptionedSamples(
        datasets.Dataset.from_dict(rows, features=images.rows.features), images.config, 3, (16, 16)
    )
    images.read_all(progress=False)
    found = lint(images, 10)
    assert found.dropped == [
        "caption in row 103 must be text: got None",
        "picture in row 105 cannot be read: cannot identify image file",
    ]
    assert (found.rows, found.looked_at, found.buckets) == (9, 7, {(16, 16): 7})
    assert not any(kind == "a picture smaller than it is trained at" for kind, *_ in found.findings)


def test_with_buckets_each_picture_is_held_against_its_own():
    images = odd(buckets=[(16, 16), (16, 32), (32, 16)])
    images.read_all(progress=False)
    found = lint(images, 100)
    assert found.buckets == {(16, 16): 5, (16, 32): 3, (32, 16): 1}
    kinds = [kind for kind, *_ in found.findings]
    assert "a picture of which more than half is cropped" not in kinds


def test_what_is_not_yet_known_to_be_bad_is_named():
    images = odd()
    rows = images.rows.to_dict()
    rows["image"][5] = {"bytes": b"words", "path": None}
    images = CaptionedSamples(
        datasets.Dataset.from_dict(rows, features=images.rows.features), images.config, 3, (16, 16)
    )
    assert ("a picture that cannot be read", 1, [105]) in lint(images, 10).findings


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_bad_captions_are_found_in_columns_of_any_kind(kind):
    assert list(bad_captions(pa.array(["a", None, "", "b", None], kind))) == [
        (1, "must be text: got None"),
        (4, "must be text: got None"),
    ]
    lists = [["a"], None, [], ["b", None], [None], ["c", ""]]
    for made in (pa.list_(kind), pa.large_list(kind)):
        assert [index for index, _ in bad_captions(pa.array(lists, made))] == [1, 2, 3, 4]
        assert list(bad_captions(pa.array(lists[5:], made))) == []
        assert [index for index, _ in bad_captions(pa.array(lists, made)[2:])] == [0, 1, 2]


def test_cells_are_the_rows_own_in_any_order():
    images = odd()
    order = [8, 3, 3, 0]
    found = [bytes(cell["bytes"]) for cell in cells(images.rows.select(order), "image")]
    assert found == [images.rows[index]["image"]["bytes"] for index in order]
    empty = datasets.Dataset.from_dict(
        {"image": [None, {"bytes": None, "path": "x"}]}, datasets.Features({"image": datasets.Image(decode=False)})
    )
    assert list(cells(empty, "image")) == [{"bytes": None, "path": None}, {"bytes": None, "path": "x"}]


def test_captions_that_name_a_side_are_found_where_pictures_are_mirrored():
    captions = [
        "an arrow to the LEFT",
        "copyright of the leftovers",
        "clockwise arrows",
        "bright red",
        "a right-facing fist",
    ]
    found = odd_captions(captions, random_flip=True).findings
    assert found == [
        (
            "a caption that names a side ('an arrow to the LEFT'), untrue of the pictures that random_flip mirrors",
            3,
            [100, 102, 104],
        )
    ]
    assert odd_captions(captions, random_flip=False).findings == []


def odd_captions(captions: list[str], **settings):
    """Look at as many different pictures of one size as there are captions, each with its own."""
    cells = [{"bytes": file_of(number, (16, 16)), "path": None} for number in range(len(captions))]
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": cells, "text": captions}, features=features)
    rows = rows.add_column(NUMBER, np.arange(100, 100 + len(captions)))
    return lint(CaptionedSamples(rows, TrainConfig(train_data_dir="none", **settings), 3, (16, 16)), 100)
