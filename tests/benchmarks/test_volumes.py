"""Measures of the benchmarks of videos and solids, on sets whose figures are known."""

import pytest
import torch

from mezzotint_training.benchmarks import solid_quality, video_quality
from mezzotint_training.data.blocks import blocks
from mezzotint_training.modalities import voxels


@pytest.fixture(scope="module")
def solids() -> torch.Tensor:
    rows = blocks()["test"].with_format("numpy")["voxels"][:12]
    return torch.stack([voxels.read(one.astype("uint8"), 4, (8, 8, 8)) for one in rows])


def test_solids_are_apart_by_the_filled_voxels_in_which_they_differ(solids):
    far = solid_quality.apart(solids, solids)
    assert torch.equal(far, far.T) and not far.diagonal().any() and (far >= 0).all() and (far <= 1).all()
    other = solids[:1].clone()
    other[:, :3] = 255 - other[:, :3]  # of another colour, voxel by voxel
    assert solid_quality.apart(solids[:1], other).item() == 1
    half = solids[:1].clone()
    half[:, :, :, :4] = 0
    filled = [(x[0, 3] > 0).sum().item() for x in (half, solids[:1])]
    assert solid_quality.apart(half, solids[:1]).item() == pytest.approx(1 - filled[0] / filled[1])


def test_what_equals_the_real_set_covers_it_and_what_is_far_from_it_is_told_apart(solids):
    assert solid_quality.coverage(solids, solids).value == 1
    assert solid_quality.coverage(solids[:1].expand(12, -1, -1, -1, -1), solids).value == pytest.approx(1 / 12)
    assert solid_quality.told_apart(solids, solids).value == 0  # each one's nearest is its twin of the other kind
    nothing_alike = solids.flip(2)
    nothing_alike[:, :3] = 255 - nothing_alike[:, :3]
    assert solid_quality.told_apart(nothing_alike, solids).value == 1


def test_frames_come_back_from_what_judges_look_at():
    clip = torch.arange(2 * 3 * 4 * 2 * 2).reshape(2, 3, 4, 2, 2)
    assert torch.equal(video_quality.frames_of(clip.flatten(1, 2)), clip.transpose(1, 2))


@pytest.mark.parametrize("mixed, expected", [(False, 1.0), (True, 0.0)])
def test_a_frame_keeps_its_figure_where_it_is_like_its_own_first_one(mixed, expected):
    """Three clips in one direction, each of one shade; mixed, the later frames are the next clip's."""
    clips = torch.tensor([0, 100, 255]).reshape(3, 1, 1, 1, 1).expand(3, 3, 4, 2, 2).clone()
    clips[:, 0] = torch.tensor([255, 0, 0]).reshape(3, 1, 1, 1)  # and of a colour, or the directions were opposite
    if mixed:
        clips[:, :, 1:] = clips[:, :, 1:].roll(1, 0)

    def judge(frames: torch.Tensor) -> torch.Tensor:
        return frames.flatten(1).double()

    found = video_quality.kept(judge, clips.flatten(1, 2), torch.zeros(3, dtype=torch.long))
    assert found.value == expected
