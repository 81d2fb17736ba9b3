"""What becomes of odd and broken rows, files and folders: three tables, each case with its outcome.

A row is either used (the table says as what) or bad. A bad row stops the run by one line that names it, or under
`on_bad_row=skip` is left out and counted; likewise if its picture is decoded only while training runs, where its place
goes to another row. A file or folder that cannot be read as a whole, or a column of the wrong type, stops the run at
the start whatever `on_bad_row` says: what would be left is not the set that was asked for.
"""

import builtins
import io
import json
import os
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_run import pictures

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data import dataset as data
from mezzotint_training.data.dataset import CaptionedSamples, collate
from mezzotint_training.data.rows import held_out, load_splits

SIZE = (8, 8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cached_here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, kind, **options)
    return file.getvalue()


def plain(red: int, green: int, blue: int, size=SIZE) -> Image.Image:
    return Image.new("RGB", size, (red, green, blue))


def png(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none: what is said of their number is said before decoding."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    frames = [plain(*colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)


def lying() -> bytes:
    """Green on the left of the file, red on the right; upright, by its EXIF orientation 6, green is above."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = plain(255, 0, 0, (8, 8))
    picture.paste((0, 255, 0), (0, 0, 4, 8))
    return encoded(picture, exif=exif)


def panorama() -> bytes:
    picture = plain(255, 0, 0, (20_000, 8))
    picture.paste((0, 0, 255), (9_996, 0, 10_004, 8))  # its middle
    return encoded(picture)


def big_endian(level: int) -> bytes:
    """A TIFF of the size with its most significant bytes first."""
    picture = Image.new("I;16B", SIZE)
    picture.frombytes(level.to_bytes(2, "big") * (SIZE[0] * SIZE[1]))
    return encoded(picture, "TIFF")


# Clear above and 64 of 255 below
CLEAR = np.vstack([np.full((SIZE[0] // 2, SIZE[1]), 0x1234), np.full((SIZE[0] - SIZE[0] // 2, SIZE[1]), 0x4000)])
CLEAR = CLEAR.astype(np.uint16)
# Of each picture: its file, and the colour of its upper and its lower half as it is used, or what is wrong with it
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PICTURES = {
    "a JPEG cut short": (encoded(NOISE, "JPEG")[:1500], "image file is truncated"),
    "a PNG cut short": (encoded(NOISE)[:5000], "truncated"),
    "a header cut short": (encoded(NOISE)[:20], "Truncated File Read"),
    "damaged in the middle": (encoded(NOISE)[:100] + bytes(500) + encoded(NOISE)[600:], ""),
    "zero bytes": (b"", "there is none"),
    "none": (None, "there is none"),
    "words": (b"not a picture", "cannot identify image file"),
    "CMYK": (encoded(Image.new("CMYK", SIZE, (0, 255, 255, 0)), "JPEG", quality=100), (RED, RED)),
    "16 bits a pixel": (encoded(np.full(SIZE, 0x80FF, dtype=np.uint16)), ((128,) * 3, (128,) * 3)),
    "16 bits a pixel, some clear": (encoded(Image.fromarray(CLEAR), transparency=0x1234), ((255,) * 3, (64,) * 3)),
    "16 bits a pixel, the other way round": (big_endian(0x4000), ((64,) * 3, (64,) * 3)),
    "fractions for pixels": (encoded(np.ones(SIZE, dtype=np.float32), "TIFF"), "its pixels are fractions"),
    "one bit a pixel": (encoded(np.ones(SIZE, dtype=bool)), ((255,) * 3, (255,) * 3)),
    "see-through": (encoded(Image.new("RGBA", SIZE, (0, 0, 0, 0))), ((255,) * 3, (255,) * 3)),
    "an animated GIF": (animation("GIF"), (RED, RED)),
    "an animated PNG": (animation("PNG"), (RED, RED)),
    "an animated WebP": (animation("WEBP"), (RED, RED)),
    "a TIFF of several pages": (animation("TIFF"), (RED, RED)),
    "turned by its EXIF": (lying(), (GREEN, RED)),
    "1x1": (encoded(plain(*GREEN, (1, 1))), (GREEN, GREEN)),
    "20,000 pixels wide": (panorama(), (BLUE, BLUE)),
    "a bomb": (png(60_000, 60_000), "Image size (3600000000 pixels) exceeds limit"),
    "a bomb of which Pillow only warns": (png(12_000, 12_000), "(144000000 pixels) exceeds limit of 89478485"),
}  # fmt: skip


def set_of(files: list[bytes | None], **settings) -> CaptionedSamples:
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    rows = {"image": [file if file is None else {"bytes": file, "path": None} for file in files]}
    rows["text"] = [str(number) for number in range(len(files))]
    config = TrainConfig(train_data_dir="none", proportion_empty_prompts=0, **settings)
    return CaptionedSamples(datasets.Dataset.from_dict(rows, features=features), config, 3, SIZE)


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures(kind, monkeypatch, recwarn):
    file, outcome = PICTURES[kind]
    files = [encoded(plain(1, 2, 3)), file, encoded(plain(4, 5, 6))]
    if not isinstance(outcome, str):
        images = set_of(files)
        images.read_all(progress=False)
        upper, lower = np.split(images.content(1).permute(1, 2, 0).numpy(), 2)
        assert images.bad == [] and len(images) == 3
        for half, colour in ((upper, outcome[0]), (lower, outcome[1])):
            np.testing.assert_allclose(half, np.broadcast_to(colour, half.shape), atol=2)
        return
    with pytest.raises(UserError) as error:
        set_of(files).read_all(progress=False)
    line = str(error.value)
    assert line.startswith("picture in row 1 cannot be read: ") and outcome in line and "\n" not in line
    assert line.endswith("; --on_bad_row skip goes on without it") and " at 0x" not in line
    images = set_of(files, on_bad_row="skip")
    images.read_all(progress=False)
    assert len(images) == 2 and images.bad == [line.rpartition("; ")[0]]

    monkeypatch.setattr(data, "CACHE_BYTES", 0)  # while training runs
    with pytest.raises(UserError) as late:
        set_of(files)[0, 1]
    assert str(late.value) == line
    images = set_of(files, on_bad_row="skip")
    images.read_all(progress=False)
    batch = collate([images[0, position] for position in range(3)])
    assert batch["sample"].shape == (3, 3, *SIZE) and batch["bad"] == [line.rpartition("; ")[0]]
    assert batch["captions"][0] == "0" and batch["captions"][1] in "02" and batch["captions"][2] == "2"
    assert not recwarn.list  # of bombs, Pillow would warn beside the progress bar and then decode them


def test_duplicates_are_used_each_with_noise_of_its_own():
    images = set_of([encoded(plain(*GREEN))] * 2)
    first, second = images[0, 0], images[0, 1]
    assert (first["sample"] == second["sample"]).all() and (first["noise"] != second["noise"]).all()


# Of each caption: as what it is used, or what is wrong with it
LONG = "a" * 100_000
CAPTIONS = {
    "none": (None, "must be text: got None"),
    "empty": ("", ""),
    "blank": (" \n", " \n"),
    "a NUL": ("a\0b", "a\0b"),
    "100 kB": (LONG, LONG),
    "a single surrogate's bytes": (b"\xed\xa0\x80", "must be text in UTF-8: 'utf-8' codec can't decode byte 0xed"),
    "Latin-1": (b"caf\xe9", "must be text in UTF-8: 'utf-8' codec can't decode byte 0xe9"),
    "an empty list": ([], "must be text: got []"),
    "a list of none": ([None], "must be text: got [None]"),
    "a list with a none": (["a", None], "must be text: got ['a', None]"),
    "a list with no UTF-8": (["a", b"\xff"], "must be text in UTF-8: 'utf-8' codec can't decode byte 0xff"),
    "a list with an empty one": ([""], ""),
}


def parquet(folder: Path, captions: list, kind: pa.DataType | None = None) -> Path:
    """A parquet file of one picture and those captions, bytes among which are written as they are."""
    folder.mkdir()
    several = any(isinstance(caption, list) for caption in captions)
    as_bytes = pa.array(captions, pa.list_(pa.binary()) if several else pa.binary())
    kind = kind or (pa.list_(pa.string()) if several else pa.string())
    buffers = [x and pa.py_buffer(x) for x in as_bytes.buffers()]
    if several:
        child = pa.Array.from_buffers(pa.string(), len(as_bytes.values), buffers[2:])
        text = pa.Array.from_buffers(kind, len(captions), buffers[:2], children=[child])
    else:
        text = pa.Array.from_buffers(kind, len(captions), buffers)
    cell = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image = pa.array([{"bytes": encoded(plain(1, 2, 3)), "path": None}] * len(captions), cell)
    value = {"_type": "Value", "dtype": "string"}
    table = described(
        pa.table({"image": image, "text": text}), {"_type": "List", "feature": value} if several else value
    )
    pq.write_table(table, folder / "train.parquet")
    return folder


def described(table: pa.Table, text: dict) -> pa.Table:
    """The table with what `datasets` notes of its columns."""
    features = {"image": {"_type": "Image"}, "text": text}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def images_of(folder: Path, **settings) -> CaptionedSamples:
    config = TrainConfig(train_data_dir=str(folder), proportion_empty_prompts=0, **settings)
    rows, _ = held_out(config, load_splits(config))
    images = CaptionedSamples(rows, config, 3, SIZE)
    images.read_all(progress=False)
    return images


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions(kind, tmp_path):
    caption, outcome = CAPTIONS[kind]
    good = ["good"] if isinstance(caption, list) else "good"
    folder = parquet(tmp_path / "set", [good, caption, good])
    if not outcome.startswith("must"):
        images = images_of(folder)
        assert [images[0, row]["caption"] for row in range(3)] == ["good", outcome, "good"] and images.bad == []
        return
    with pytest.raises(UserError) as error:
        images_of(folder)
    line = str(error.value)
    assert line.startswith(f"caption in row 1 {outcome}") and "\n" not in line
    assert line.endswith("; --on_bad_row skip goes on without it")
    images = images_of(folder, on_bad_row="skip")
    assert len(images) == 2 and images.bad == [line.rpartition("; ")[0]]
    assert [images[0, position]["caption"] for position in range(2)] == ["good", "good"]


def test_a_path_that_is_not_text_is_a_bad_row(tmp_path):
    folder = parquet(tmp_path / "set", ["a", "b", "c"])
    table, path = pq.read_table(folder / "train.parquet"), pa.array([b"a.png", b"\xb6.png", b"c.png"])
    path = pa.Array.from_buffers(pa.string(), 3, path.buffers())
    image = pa.StructArray.from_arrays([table["image"].combine_chunks().field("bytes"), path], ["bytes", "path"])
    pq.write_table(table.set_column(0, "image", image), folder / "train.parquet")
    with pytest.raises(UserError, match="^picture in row 1 cannot be read: 'utf-8' codec can't decode byte 0xb6"):
        images_of(folder)
    images = images_of(folder, on_bad_row="skip")
    assert len(images) == 2 and [images[0, position]["caption"] for position in range(2)] == ["a", "c"]


def test_a_bad_caption_is_said_with_its_picture(tmp_path):
    folder = pictures(tmp_path / "set", count=3, captions=["a", None, "c"])
    with pytest.raises(
        UserError, match=f"^caption in row 1 must be text: got None for {folder / '1.png'}; --on_bad_row"
    ):
        images_of(folder)
    assert len(images_of(folder, on_bad_row="skip")) == 2


# Of each folder: how it is made from a good one (three pictures, or one parquet file), and what stops the run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(table):
    def change(path: Path) -> None:
        pq.write_table(table(pq.read_table(path)), path)

    return change


def arrow(path: Path) -> None:
    table = pq.read_table(path)
    with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    path.unlink()
    cut(path.with_suffix(".arrow"))


def latin_1(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"picture 1", b"caf\xe9"))


FOLDERS = {
    "a parquet file cut short": ("train.parquet", cut, "train.parquet: Parquet magic bytes not found in footer"),
    "a parquet file of zero bytes": ("train.parquet", lambda p: p.write_bytes(b""), "Parquet file size is 0 bytes"),
    "an Arrow file cut short": ("train.parquet", arrow, "cannot load @: Expected to "),
    "captions of numbers": (
        "train.parquet",
        rewrite(
            lambda table: described(table.set_column(1, "text", pa.array([1, 2])), {"_type": "Value", "dtype": "int64"})
        ),
        "caption_column 'text' must hold text or lists of text: got Value('int64')",
    ),
    "pictures that nothing says are some": (
        "train.parquet",
        rewrite(lambda table: table.replace_schema_metadata()),
        "image_column 'image' must hold pictures: got {'bytes': Value('binary'), 'path': Value('string')}",
    ),
    "pictures that are words": (
        "train.parquet",
        rewrite(lambda table: pa.table({"image": ["a.png", "b.png"], "text": ["a", "b"]})),
        "image_column 'image' must hold pictures: got Value('string')",
    ),
    "no column of captions": (
        "train.parquet",
        rewrite(lambda table: table.rename_columns(["image", "title"]).replace_schema_metadata()),
        "caption_column 'text' is not there: got columns 'image', 'title'",
    ),
    "metadata that is no UTF-8": ("metadata.jsonl", latin_1, "cannot load @: 'utf-8' codec can't decode byte 0xe9"),
    "metadata that is no JSON": ("metadata.jsonl", cut, "cannot load @: "),
    "metadata of numbers": (
        "metadata.jsonl",
        lambda p: p.write_text("".join(f'{{"file_name": "{i}.png", "text": {i}}}\n' for i in range(3))),
        "caption_column 'text' must hold text or lists of text: got Value('int64')",
    ),
    "metadata that is gone": ("metadata.jsonl", Path.unlink, "a folder of pictures needs a metadata.jsonl with"),
}


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(kind, on_bad_row, tmp_path):
    name, damage, said = FOLDERS[kind]
    of_parquet, place = name == "train.parquet", tmp_path / "set"
    folder = parquet(place, ["a", "b"]) if of_parquet else pictures(place, count=3)
    assert len(images_of(folder)) > 1
    damage(folder / name)
    with pytest.raises(UserError) as error:
        images_of(folder, on_bad_row=on_bad_row)
    assert said.replace("@", str(folder)) in str(error.value) and "\n" not in str(error.value)


def refuse(monkeypatch, module, name: str, place: Path) -> None:
    """No permission for `place`, whoever runs the tests (for root, the permissions of a file are not binding)."""
    real = getattr(module, name)

    def refusing(path=".", *args, **kwargs):
        if str(path) == str(place):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(module, name, refusing)


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize("where", [".", "inner"])
def test_a_folder_without_permission_stops_the_run_and_its_pictures_are_not_passed_over(
    tmp_path, monkeypatch, where, on_bad_row
):
    folder = pictures(tmp_path / "set", count=3)
    pictures(folder / "inner", count=3)
    refuse(monkeypatch, os, "scandir", folder / where)
    with pytest.raises(UserError) as error:
        images_of(folder, on_bad_row=on_bad_row)
    said = f"train_data_dir must be readable, with all in it: [Errno 13] Permission denied: '{folder / where}'"
    assert str(error.value) == said


def test_a_picture_without_permission_is_a_bad_row(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "set", count=3)
    refuse(monkeypatch, builtins, "open", folder / "1.png")
    line = f"picture in row 1 ({folder / '1.png'}) cannot be read: [Errno 13] Permission denied: '{folder / '1.png'}'"
    with pytest.raises(UserError) as error:
        images_of(folder)
    assert str(error.value) == f"{line}; --on_bad_row skip goes on without it"
    assert images_of(folder, on_bad_row="skip").bad == [line]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_permissions_as_the_system_has_them(tmp_path):
    folder = pictures(tmp_path / "set", count=3)
    (folder / "inner").mkdir(mode=0)
    with pytest.raises(UserError, match="must be readable, with all in it: .*inner"):
        images_of(folder)
