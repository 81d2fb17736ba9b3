"""One solid: grids, colours, turns, files and pictures of them, and what is wrong with one."""

import io
import struct
import sys

import datasets
import numpy as np
import pytest
import torch

from mezzotint.samples import voxels as writer
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.augment import turned
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.source import look_at, open_rows
from mezzotint_training.modalities import voxels

# An L of three voxels: one at the front on the floor, one behind it, one on top of that
SOLID = np.zeros((4, 4, 4, 4), np.uint8)
SOLID[0, 3, 1], SOLID[1, 3, 1], SOLID[1, 2, 1] = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)


def test_a_grid_comes_through_to_the_bit():
    found = voxels.read(SOLID.tolist(), 4, (4, 4, 4))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found, SOLID.transpose(3, 0, 1, 2))
    assert voxels.header(SOLID.tolist()) == voxels.Header((4, 4, 4), 4, 3)
    np.testing.assert_array_equal(voxels.content(SOLID / 255, 4, (4, 4, 4)), found)
    there = voxels.read(SOLID.tolist(), 1, (4, 4, 4))  # without colours
    np.testing.assert_array_equal(there[0], SOLID[..., 3])
    bits = (SOLID[..., 3] > 0).astype(np.uint8)
    np.testing.assert_array_equal(voxels.read(bits.tolist(), 1, (4, 4, 4)), there)


def test_where_there_is_nothing_there_is_no_colour():
    noisy = SOLID.copy()
    noisy[2, 2, 2] = (9, 9, 9, 0)
    np.testing.assert_array_equal(voxels.read(noisy, 4, (4, 4, 4)), SOLID.transpose(3, 0, 1, 2))


@pytest.mark.parametrize(
    "given, what",
    [
        (None, "there is none"),
        (np.zeros((4, 4, 4, 4), int), "it must have one voxel or more: got none"),
        (SOLID[:3], "its grid must be 4x4x4, as that of the others: got 3x4x4"),
        (
            SOLID[..., :3],
            r"it must be whole numbers \(depth, height, width, 1 or 4 channels\): got shape \(4, 4, 4, 3\)",
        ),
        (SOLID / 2, "it must be whole numbers"),
        (SOLID.astype(int) * 2, "its numbers must be bytes, 0 to 255: got 0 to 510"),
        ([[1], [2, 3]], "inhomogeneous"),
    ],
)
def test_what_is_no_solid_is_said_in_one_line(given, what):
    with pytest.raises(ValueError, match=what) as error:
        voxels.read(given, 4, (4, 4, 4))
    assert "\n" not in str(error.value)


def test_four_quarter_turns_bring_a_solid_back_and_none_has_labels_of_zero():
    solid = voxels.read(SOLID, 4, (4, 4, 4))
    once, labels = turned(solid, 1)
    assert labels.tolist() == [-1, 1] and torch.equal(once.sum((1, 3)), solid.sum((1, 3)))  # heights stay
    again = solid
    for _ in range(4):
        again = turned(again, 1)[0]
    assert torch.equal(again, solid) and torch.equal(turned(solid, 3)[0], turned(turned(solid, 2)[0], 1)[0])
    assert turned(solid, 0)[1].tolist() == [0, 0] and torch.equal(turned(solid, 0)[0], solid)


def test_a_vox_file_holds_every_voxel_with_its_colour():
    """Read by the format's own page: chunks of a name, two lengths and a content."""
    file = writer.encoded(SOLID / 255, ".vox", {})
    assert file[:8] == b"VOX " + struct.pack("<i", 150) and file[8:12] == b"MAIN"
    place, chunks = 20, {}
    while place < len(file):
        length = struct.unpack("<i", file[place + 4 : place + 8])[0]
        chunks[file[place : place + 4]] = file[place + 12 : place + 12 + length]
        place += 12 + length
    assert struct.unpack("<iii", chunks[b"SIZE"]) == (4, 4, 4)
    palette = np.frombuffer(chunks[b"RGBA"], np.uint8).reshape(256, 4)
    places = np.frombuffer(chunks[b"XYZI"][4:], np.uint8).reshape(-1, 4)
    found = {(int(x), int(y), int(z)): tuple(palette[c - 1][:3].tolist()) for x, y, z, c in places}
    assert found == {(1, 0, 0): (255, 0, 0), (1, 1, 0): (0, 255, 0), (1, 1, 1): (0, 0, 255)}  # right, backwards, up


def test_more_colours_than_a_palette_has_come_out_near():
    many = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 4)).astype(np.uint8)
    many[..., 3] = 255
    assert len(writer.encoded(many / 255, ".vox", {})) > 8**3 * 4


@pytest.mark.parametrize("ending", [".glb", ".ply"])
def test_a_mesh_is_the_surface_of_the_solid(ending):
    """Its volume is the number of voxels, its area that of the sides that are seen: 3 cubes in an L have 14."""
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.load(io.BytesIO(writer.encoded(SOLID / 255, ending, {})), file_type=ending[1:], force="mesh")
    assert mesh.volume == pytest.approx(3) and mesh.area == pytest.approx(14)
    np.testing.assert_allclose(mesh.bounds, [[1, 0, -2], [2, 2, 0]])  # right, up, towards us


@pytest.mark.parametrize("ending", [".vox", ".glb", ".ply"])
def test_a_solid_of_nothing_is_a_file_too(ending):
    if ending != ".vox":
        pytest.importorskip("trimesh")
    assert writer.encoded(0 * SOLID / 255, ending, {})


def test_a_picture_shows_the_sides_that_are_seen_from_the_front_the_right_and_above():
    picture = np.asarray(writer.show(SOLID / 255, {}, (4, 4, 4)).convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in picture.tolist()}
    shades = [int(255 * shade) for shade in writer.SHADES.values()]
    assert colours == {(255, 255, 255)} | {(x, 0, 0) for x in shades} | {(0, 0, x) for x in shades} | {
        (0, shades[2], 0)
    }


def test_grids_are_told_to_be_solids_and_a_bad_row_is_named(tmp_path):
    features = datasets.Features({"grid": datasets.Array4D((4, 4, 4, 4), "uint8"), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"grid": [SOLID, SOLID * 0, SOLID], "text": ["x"] * 3}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    config = TrainConfig(train_data_dir=str(tmp_path), num_validation_samples=0, on_bad_row="skip", random_turn=True)
    known = open_rows(config).known
    facts = look_at(open_rows(config), config, None)
    assert (config.modality, config.sample_column, facts.size, facts.channels) == ("voxels", "grid", (4, 4, 4), 4)
    data = CaptionedSamples(known, config, 4, facts.size)
    data.read_all(progress=False)
    assert data.bad == ["solid in row 1 cannot be read: it must have one voxel or more: got none"]
    item, upright = data[0, 0], voxels.read(SOLID, 4, (4, 4, 4)).float() / 127.5 - 1
    quarters = [[0, 0], [-1, 1], [-2, 0], [-1, -1]].index(item["augment_labels"].tolist())
    torch.testing.assert_close(item["sample"], turned(upright, quarters)[0])
    larger = CaptionedSamples(known, config, 4, (8, 8, 8))
    with pytest.raises(UserError, match="no row could be read; the first: solid in row 0 .* must be 8x8x8.*got 4x4x4"):
        larger.read_all(progress=False)


def test_without_the_library_one_line_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match=r"^meshes need trimesh; pip install 'mezzotint\[voxels\]' brings it$"):
        writer.encoded(SOLID / 255, ".glb", {})
