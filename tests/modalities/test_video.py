"""One video: lists of frames and files, rates, lengths, and what is wrong with one. The oracle is known frames."""

import io
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.samples import video as writer
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.source import look_at, open_rows
from mezzotint_training.modalities import video

# Flat frames, which come through H.264 but for rounding, each darker than the one before
FRAMES = [Image.new("RGB", (16, 24), (240 - 30 * i, 40 + 20 * i, 90)) for i in range(6)]


def cells(frames: list[Image.Image]) -> list[dict]:
    found = []
    for frame in frames:
        content = io.BytesIO()
        frame.save(content, "PNG")
        found.append({"bytes": content.getvalue(), "path": None})
    return found


def stacked(frames: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in frames]).transpose(3, 0, 1, 2)


def file(frames: list[Image.Image], rate: float) -> dict:
    return {"bytes": writer.encoded(frames, ".mp4", {"frame_rate": rate}), "path": None}


def test_a_list_of_frames_comes_through_to_the_bit():
    found = video.read(cells(FRAMES), 3, (6, 24, 16))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found, stacked(FRAMES))
    assert video.header(cells(FRAMES)) == video.Header(6, 24, 16)
    np.testing.assert_array_equal(video.read(cells(FRAMES), 3, (4, 24, 16)), stacked(FRAMES[:4]))
    assert video.header(cells(FRAMES)).findings((4, 24, 16)) == [
        "a video of more than 4 frames, of which the first are used"
    ]


@pytest.mark.parametrize(
    "rate, shown", [(8, range(6)), (4, (0, 2, 4)), (16, (0, 0, 1, 1, 2, 2, 3, 3)), (6, (0, 1, 2, 4))]
)
def test_a_file_is_shown_at_another_rate_for_as_long(rate, shown):
    """Of each moment the frame that is on the screen then."""
    pytest.importorskip("av")
    given, about = file(FRAMES, 8), {"frame_rate": float(rate)}
    assert video.header(given) == video.Header(6, 24, 16, 8.0)
    found = video.read(given, 3, (len(shown), 24, 16), about)
    np.testing.assert_allclose(found.float(), stacked([FRAMES[i] for i in shown]), atol=6)


@pytest.mark.parametrize("ending", [".webp", ".gif"])
def test_what_is_written_goes_round_with_the_same_frames_and_rate(ending):
    written = Image.open(io.BytesIO(writer.encoded(FRAMES, ending, {"frame_rate": 10.0})))
    assert written.n_frames == 6 and written.info["loop"] == 0
    for number, frame in enumerate(FRAMES):
        written.seek(number)
        np.testing.assert_allclose(
            np.asarray(written.convert("RGB"), int), np.asarray(frame), atol=4 * (ending == ".gif")
        )
        assert written.info["duration"] == 100


def test_frames_are_scaled_and_cropped_as_pictures():
    assert video.read(cells(FRAMES), 3, (6, 8, 8)).shape == (3, 6, 8, 8)
    grey = video.read(cells(FRAMES), 1, (2, 24, 16))
    assert grey.shape == (1, 2, 24, 16) and grey[0, 0, 0, 0] == round(0.299 * 240 + 0.587 * 40 + 0.114 * 90)


@pytest.mark.parametrize(
    "given, what",
    [
        ([], "it must have two frames or more: got none"),
        (cells(FRAMES[:1]), "it must have two frames or more: got one"),
        (cells(FRAMES[:3]), "it must have 4 frames, which are trained on: got 3"),
        (
            cells([*FRAMES[:3], Image.new("RGB", (8, 9))]),
            "its frames must have one size: got 16x24, and 8x9 in frame 3",
        ),
        ([*cells(FRAMES), None], "there is none"),
        (None, "there is none"),
        ({"bytes": b"no video at all", "path": None}, "Invalid data"),
    ],
)
def test_what_is_no_video_is_said_in_one_line(given, what):
    with pytest.raises(ValueError, match=what) as error:
        video.read(given, 3, (4, 24, 16))
    assert "\n" not in str(error.value)


def test_a_file_of_one_frame_is_none():
    pytest.importorskip("av")
    with pytest.raises(ValueError, match="it must have two frames or more: got one"):
        video.read(file(FRAMES[:1], 8), 3, (4, 24, 16))


def test_frames_and_rate_are_the_sets_or_as_asked_or_the_saved_models():
    headers = [video.Header(*x) for x in ((9, 24, 16, 8.0), (30, 24, 16, 24.0), (12, 24, 16, 8.0))]

    def settled(size=None, about=None, **asked):
        config = SimpleNamespace(**{"num_frames": None, "frame_rate": None, "resolution": None} | asked)
        return video.settle(config, headers[0], lambda: headers, size, about)

    assert settled() == ((9, 24, 16), {"frame_rate": 8.0})
    assert settled(frame_rate=4.0) == ((4, 24, 16), {"frame_rate": 4.0})
    assert settled(num_frames=5, resolution=[32]) == ((5, 32, 32), {"frame_rate": 8.0})
    assert settled((7, 8, 12), {"frame_rate": 3.0}) == ((7, 8, 12), {"frame_rate": 3.0})
    with pytest.raises(ValueError, match="must be that of the saved pipeline, 3: got 8"):
        settled((7, 8, 12), {"frame_rate": 3.0}, frame_rate=8.0)


def of_rows(folder, rows: list, **asked) -> tuple:
    features = datasets.Features({"clip": datasets.List(datasets.Image()), "text": datasets.Value("string")})
    datasets.Dataset.from_dict({"clip": rows, "text": ["x"] * len(rows)}, features=features).to_parquet(
        folder / "train.parquet"
    )
    config = TrainConfig(train_data_dir=str(folder), num_validation_samples=0, **asked)
    rows = open_rows(config)
    facts = look_at(rows, config, None)
    data = CaptionedSamples(rows.known, config, facts.channels, facts.size, about=facts.about)
    data.read_all(progress=False)
    return config, facts, data


def test_a_column_of_lists_of_pictures_is_told_to_be_videos_and_a_bad_row_is_named(tmp_path):
    rows = [cells(FRAMES), cells(FRAMES[:1]), cells(FRAMES[:5]), cells([*FRAMES[:4], Image.new("RGB", (9, 9))])]
    config, facts, data = of_rows(tmp_path, rows, on_bad_row="skip")
    assert (config.modality, config.sample_column, facts.size) == ("video", "clip", (5, 24, 16))
    assert (facts.downsample_axes, facts.halved) == ((1, 2), (24, 16))
    assert data.bad == [
        "video in row 1 cannot be read: it must have two frames or more: got one",
        "video in row 3 cannot be read: its frames must have one size: got 16x24, and 9x9 in frame 4",
    ]
    with pytest.raises(UserError, match="^video in row 1 cannot be read: .*got one; --on_bad_row skip goes on"):
        of_rows(tmp_path, rows)
    with pytest.raises(UserError, match=r"task is not for videos \(modality video\): got 'inpaint'"):
        of_rows(tmp_path, rows, task="inpaint")


def test_without_the_library_one_line_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert video.undecoded(datasets.List(datasets.Image())) == datasets.List(datasets.Image(decode=False))
    with pytest.raises(ImportError, match=r"^files of videos need av; pip install 'mezzotint\[video\]' brings it$"):
        video.undecoded(datasets.Video())
