"""One picture: its pixels against numpy's, and what its header alone says against what its file holds."""

import io
import os

import numpy as np
import pyarrow as pa
import pytest
from PIL import EpsImagePlugin, Image, ImageFile, ImageOps

from mezzotint_training.modalities.images import EXTENSIONS, FORMATS, header, open_picture, read

NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decoded(file: bytes, channels: int = 3, size=(12, 8)) -> np.ndarray:
    """The pixels that a file becomes, (height, width, channels)."""
    return read({"bytes": file, "path": None}, channels, size).permute(1, 2, 0).numpy()


def test_a_picture_of_the_right_size_and_mode_is_left_as_it_is():
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(NOISE))), NOISE)
    grey = NOISE[:, :, 0]
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(grey)), channels=1)[:, :, 0], grey)


def test_grey_becomes_colour_and_colour_grey():
    grey = NOISE[:, :, 0]
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(grey))), np.repeat(grey[:, :, None], 3, axis=2))
    luma = NOISE @ [0.299, 0.587, 0.114]  # ITU-R 601
    assert np.abs(decoded(encoded(Image.fromarray(NOISE)), channels=1)[:, :, 0] - luma).max() <= 1
    black_and_white = encoded(Image.fromarray(grey > 127))
    np.testing.assert_array_equal(decoded(black_and_white, channels=1)[:, :, 0], (grey > 127) * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_a_pixel_become_eight(kind, channels):
    wide = np.random.default_rng(0).integers(0, 65536, (12, 8), dtype=np.uint16)
    for pixels in (wide, wide.astype(np.int32)) if kind == "TIFF" else (wide,):
        made = decoded(encoded(Image.fromarray(pixels), kind), channels)
        np.testing.assert_array_equal(made, np.repeat((wide // 256)[:, :, None], channels, axis=2))


def test_what_is_transparent_becomes_white():
    alpha = np.linspace(0, 255, 96).astype(np.uint8).reshape(12, 8)
    rgba = np.dstack([NOISE, alpha])
    expected = NOISE * (alpha / 255)[:, :, None] + 255 * (1 - alpha / 255)[:, :, None]
    assert np.abs(decoded(encoded(Image.fromarray(rgba))) - expected).max() <= 1
    expected = NOISE[:, :, 0] * (alpha / 255) + 255 * (1 - alpha / 255)
    grey = Image.fromarray(np.dstack([NOISE[:, :, 0], alpha]), "LA")
    assert np.abs(decoded(encoded(grey), channels=1)[:, :, 0] - expected).max() <= 1

    palette = Image.new("P", (8, 12))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (0, 0, 4, 12))
    made = decoded(encoded(palette, transparency=0))  # red is see-through
    assert (made[:, :4] == [0, 255, 0]).all() and (made[:, 4:] == 255).all()


@pytest.mark.parametrize("orientation, upright", [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, np.rot90)])
def test_pictures_are_turned_upright(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = upright(NOISE) if orientation != 6 else np.rot90(NOISE, -1)  # 6: the top is at the right of the file
    size = expected.shape[:2]
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(NOISE), exif=exif), size=size), expected)


def test_other_sizes_are_scaled_to_cover_and_cropped_about_the_centre():
    stripes = np.zeros((10, 30, 3), dtype=np.uint8)
    stripes[:, :10, 0] = stripes[:, 10:20, 1] = stripes[:, 20:, 2] = 255  # red, green, blue
    made = decoded(encoded(Image.fromarray(stripes)), size=(10, 10))
    np.testing.assert_array_equal(made, stripes[:, 10:20])
    made = decoded(encoded(Image.fromarray(stripes.transpose(1, 0, 2))), size=(5, 5))  # half of the middle's size
    assert made.shape == (5, 5, 3) and np.abs(made[2].astype(int) - [0, 255, 0]).max() <= 2
    made = decoded(encoded(Image.fromarray(stripes)), size=(20, 60))
    assert made.shape == (20, 60, 3) and (made[:, [5, 30, 55]].argmax(-1) == [0, 1, 2]).all()
    flat = Image.new("RGB", (31, 17), (10, 20, 30))
    assert (decoded(encoded(flat), size=(8, 4)) == [10, 20, 30]).all()


# ------------------------------------------------------------------------------------------------------------- headers

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_is_read_without_the_rest(kind, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    file = encoded(Image.fromarray(noise), kind)
    (tmp_path / "picture").write_bytes(file)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for cell in (
        {"bytes": file, "path": "none"},
        {"bytes": pa.py_buffer(file), "path": None},
        {"bytes": None, "path": str(tmp_path / "picture")},
    ):
        assert header(cell)[:3] == (300, 200, False)
    for broken in (b"words", pa.py_buffer(b"words"), file[:6], pa.py_buffer(file[:6])):
        with pytest.raises(ValueError) as error:
            header({"bytes": broken, "path": None})
        assert "0x" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_headers_size_is_that_of_the_upright_picture(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    cell = {"bytes": encoded(Image.fromarray(NOISE), kind, exif=exif), "path": None}
    found, picture = header(cell), open_picture(cell)
    assert (found.height, found.width) == (picture.height, picture.width) == ((12, 8) if orientation < 5 else (8, 12))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_pictures_of_several_frames_are_told(kind):
    frames = [Image.new("RGB", (8, 12), colour) for colour in ("red", "blue")]
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert header({"bytes": file, "path": None})[:3] == (12, 8, True)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (10, 50)])
def test_a_large_jpeg_is_not_decoded_at_its_full_size_and_looks_the_same(size, turned, monkeypatch):
    y, x = np.mgrid[:600, :800] / 800
    waves = np.stack([127 + 120 * np.sin(40 * x + 9 * y), 127 + 120 * np.cos(31 * y), 255 * x], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    file = encoded(Image.fromarray(waves), "JPEG", quality=95, exif=exif)
    expected = decoded(encoded(open_picture({"bytes": file, "path": None})), size=size)
    sizes = []
    real = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: [sizes.append(self.size), real(self)][1])
    made = decoded(file, size=size)
    least = 2 * max(size)
    assert all(min(s) >= least for s in sizes) and 2 * min(sizes[0]) < 4 * least
    assert np.abs(made.astype(int) - expected).mean() < 1 and np.abs(made.astype(int) - expected).max() < 12
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(NOISE), "JPEG")), np.asarray(
        Image.open(io.BytesIO(encoded(Image.fromarray(NOISE), "JPEG")))))  # fmt: skip


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    for look in (header, lambda cell: read(cell, 3, (8, 8))):
        with pytest.raises(ValueError, match="it is no plain file"):
            look({"bytes": None, "path": str(tmp_path / "0.png")})


# ------------------------------------------------------------------------------------------------------------- formats


def test_the_formats_are_those_of_the_endings():
    Image.init()
    assert {Image.EXTENSION[ending] for ending in EXTENSIONS} == set(FORMATS)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO", "TGA", "SGI"])
def test_a_file_of_another_format_is_none_whatever_its_name_and_starts_no_program(kind, tmp_path, monkeypatch):
    """Pillow has Ghostscript read an EPS."""
    mark = tmp_path / "mark"
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # as it was found, or was not
    file = tmp_path / "0.png"
    file.write_bytes(encoded(Image.fromarray(NOISE), kind))
    for cell in (
        {"bytes": file.read_bytes(), "path": "0.png"},
        {"bytes": pa.py_buffer(file.read_bytes()), "path": None},
        {"bytes": None, "path": str(file)},
    ):
        for look in (header, lambda cell: read(cell, 3, (12, 8))):
            with pytest.raises(ValueError, match="cannot identify image file"):
                look(cell)
    assert not mark.exists()


def test_a_size_beyond_the_memory_is_no_fault_of_the_picture(monkeypatch):
    monkeypatch.setattr(ImageOps, "fit", lambda *args, **kwargs: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        decoded(encoded(Image.fromarray(NOISE)), size=(8, 8))
