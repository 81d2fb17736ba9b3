"""The copy rate of a run while it trains: of a network that copies a known share of its training pictures."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.metrics.onset import ALARMS, FEWEST, STEPS, CopyWatch


def images(count: int, seed: int) -> CaptionedSamples:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(one) for one in pixels], "text": [f"number {i}" for i in range(count)]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    ).cast_column("image", datasets.Image(decode=False))
    found = CaptionedSamples(rows, TrainConfig(dataset_name="x"), 1, (8, 8))
    found.read_all(progress=False)
    return found


@pytest.fixture(scope="module")
def known():
    return images(200, 0)


class Copyist:
    """A pipeline that draws the training picture of each of the first `share` of prompts, blurred by `noise`, and pure
    noise for the others."""

    unet, modality = SimpleNamespace(config=SimpleNamespace(cross_attention_dim=8)), "image"

    def __init__(self, known: CaptionedSamples, share: float, noise: float = 0.02):
        self.known, self.share, self.noise, self.prompts = known, share, noise, []

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompt, num_inference_steps, guidance_scale, generator, output_type):
        assert (num_inference_steps, guidance_scale, output_type) == (STEPS, 1.0, "pt")
        pictures = []
        for text, source in zip(prompt, generator, strict=True):
            copied = len(self.prompts) % 64 < 64 * self.share
            self.prompts.append(text)
            copy = self.known.content(int(text.removeprefix("number "))) / 255
            pictures.append(
                copy + self.noise * torch.randn(1, 8, 8, generator=source)
                if copied
                else torch.rand(1, 8, 8, generator=source)
            )
        return SimpleNamespace(images=torch.stack(pictures).clamp(0, 1))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_copies_is_found(known, share):
    watch, pipe, said = CopyWatch(known, images(300, 1), 64), Copyist(known, share), []
    found = watch.look(7, pipe, said.append)
    assert watch.passes == 64 * STEPS
    assert len(pipe.prompts) == len(set(pipe.prompts)) == 64  # the captions of 64 rows, from the first to the last
    assert pipe.prompts[0] == "number 0" and pipe.prompts[-1] == "number 199"
    assert found["copy_rate"] == pytest.approx(share + (1 - share) * ALARMS, abs=0.08)
    assert found["copying"] is (share > 0)
    assert watch.look(9, pipe, said.append) == found  # always from the same noise
    if share:
        assert watch.onset == 7 and len(said) == 1 and said[0].startswith("step 7: copies begin: ")
        again = CopyWatch(known, images(300, 1), 64)
        again.restore(watch.state())
        again.look(11, pipe, said.append)
        assert again.onset == 7 and len(said) == 1
    else:
        assert watch.onset is None and not said


@pytest.mark.parametrize("count, held_out", [(0, 300), (64, int(FEWEST) - 1), (64, None)])
def test_nothing_is_drawn_where_nothing_could_be_told(known, count, held_out):
    watch = CopyWatch(known, held_out and images(held_out, 1), count)
    assert watch.look(1, None, None) == {} and watch.passes == 0
    watch.restore({})  # of a checkpoint that was written before runs looked for copies
    assert watch.onset is None


def test_pictures_that_are_not_finite_are_no_copies(known):
    class Broken(Copyist):
        def __call__(self, *_, **__):
            raise ValueError("the pictures are not finite")

    assert CopyWatch(known, images(50, 1), 8).look(1, Broken(known, 1.0), None) == {}
