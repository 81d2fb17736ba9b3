"""Distances, intervals, retrieval and copies against closed forms, brute force and invariances; features against what
is known of them."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from mezzotint_training.config.errors import UserError
from mezzotint_training.metrics import distances as metrics
from mezzotint_training.metrics.copies import copies, copy_ratios, nearest, retrieved
from mezzotint_training.metrics.distances import (
    frechet_distance,
    gaussian,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
)
from mezzotint_training.metrics.features import InceptionFeatures, PretrainedFeatures, RandomFeatures
from mezzotint_training.metrics.intervals import average, estimated, interval, jackknife, share
from mezzotint_training.metrics.judges import TextTower, train_caption_judge, train_class_judge


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small_pieces(monkeypatch):
    """Everything is computed a few rows at a time."""
    monkeypatch.setattr(metrics, "CELLS", 100)


# ---------------------------------------------------------------------------------------------------- between two sets


def test_kernel_distance_is_the_mean_over_pairs(small_pieces):
    x, y = randn(7, 5), randn(40, 5, seed=1) + 0.3
    kernel = lambda a, b: float((a @ b / 5 + 1) ** 3)  # noqa: E731
    within = [np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (x, y)]
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert float(kernel_distance(x, y)) == pytest.approx(sum(within) - 2 * between, rel=1e-10)


def test_kernel_distance_is_unbiased():
    """Of one-dimensional Gaussians: with E k(a, b) = sum_j C(3, j) E[a^j] E[b^j], it is 3 (m - m')^2 + ... by moments.
    Over many small draws the mean is that, and 0 for equal ones, which a biased estimator would miss by far."""
    moments = {0.0: (1, 0, 1, 0), 1.0: (1, 1, 2, 4)}  # E[a^j] of N(0, 1) and N(1, 1)
    binomials = (1, 3, 3, 1)

    def mmd(m, n):
        return sum(c * (moments[m][j] - moments[n][j]) ** 2 for j, c in enumerate(binomials))

    for shift in (0.0, 1.0):
        draws = [kernel_distance(randn(20, 1, seed=i), randn(30, 1, seed=1000 + i) + shift) for i in range(600)]
        mean, error = float(torch.stack(draws).mean()), float(torch.stack(draws).std()) / 600**0.5
        assert abs(mean - mmd(0.0, shift)) < 3 * error
    assert mmd(0.0, 1.0) == 22 and error < 2


def test_frechet_distance_of_gaussians():
    a, b = (gaussian(randn(50, 4, seed=seed) @ randn(4, 4, seed=seed + 1) + seed) for seed in (0, 2))
    cross = scipy.linalg.sqrtm((a[1] @ b[1]).numpy()).real
    expected = float(((a[0] - b[0]) ** 2).sum() + a[1].trace() + b[1].trace()) - 2 * np.trace(cross)
    assert float(frechet_distance(a, b)) == pytest.approx(expected, rel=1e-8)
    assert float(frechet_distance(a, a)) == pytest.approx(0, abs=1e-10)
    # of axis-aligned ones: the squared distance of means and of standard deviations
    wide, narrow = (torch.diag(torch.tensor(d).double() ** 2) for d in ([3.0, 2.0], [1.0, 0.5]))
    assert float(frechet_distance((torch.zeros(2), wide), (torch.ones(2), narrow))) == pytest.approx(2 + 4 + 2.25)
    both = frechet_distance(gaussian(torch.stack([randn(50, 4), randn(50, 4, seed=1)])), b)
    assert float(both[1]) == pytest.approx(float(frechet_distance(gaussian(randn(50, 4, seed=1)), b)))


def test_sliced_wasserstein_distance():
    x = randn(100, 4)
    shift = torch.tensor([3.0, 0.0, 4.0, 0.0]).double()
    # E (theta . shift)^2 = |shift|^2 / D over the sphere; along a line the same shape has no other distance
    assert float(sliced_wasserstein(x, x + shift, 2048)) == pytest.approx(5 / 4**0.5, rel=0.03)
    assert float(sliced_wasserstein(x, x.flip(0))) == pytest.approx(0, abs=1e-12)
    # of one dimension, and of sets of other sizes: against scipy's 1-Wasserstein where all moves are as long
    points = torch.tensor([0.0, 1.0, 5.0]).double()[:, None]
    repeated = points.repeat_interleave(2, dim=0) - 2
    assert float(sliced_wasserstein(points, repeated)) == pytest.approx(2, rel=1e-12)
    # {0, 1} to {0, 0, 3}: a third stays, a sixth goes 0 -> 0, a sixth 1 -> 0 and a third 1 -> 3
    two, three = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.0], [0.0], [3.0]]).double()
    assert float(sliced_wasserstein(two, three)) == pytest.approx((1 / 6 * 1 + 1 / 3 * 4) ** 0.5, rel=1e-12)


def test_precision_and_recall(small_pieces):
    x, y = randn(60, 3), randn(60, 3, seed=1)
    assert precision_recall(x, x.flip(0)).tolist() == [1, 1]
    assert precision_recall(x, y + 100).tolist() == [0, 0]
    precise, complete = (
        precision_recall(0.1 * y[:30], x).tolist(),
        precision_recall(torch.cat([x, y + 100]), x).tolist(),
    )
    assert precise[0] == 1 and precise[1] < 0.3  # all in one place
    assert complete == [0.5, 1]
    assert precision_recall(x, y).tolist() == precision_recall(y, x).flip(0).tolist()
    # on a line, the second nearest of 0, 1, 3, 7: radii 3, 2, 3, 6; 9 is in no ball but that of 7
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]]).double()
    drawn = torch.tensor([[9.0], [13.5], [-2.5], [-4.0]]).double()
    assert float(precision_recall(drawn, real, 2)[0]) == 0.5


def test_rotation_changes_no_distance():
    x, y, turn = randn(80, 6), 1.3 * randn(50, 6, seed=1) + 0.2, torch.linalg.qr(randn(6, 6, seed=2))[0]
    for measure in (kernel_distance, precision_recall, lambda a, b: frechet_distance(gaussian(a), gaussian(b))):
        torch.testing.assert_close(measure(x @ turn, y @ turn), measure(x, y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("measure, least", [(kernel_distance, 2), (precision_recall, 4)])
def test_sets_too_small_are_refused(measure, least):
    with pytest.raises(ValueError, match=f"^each set must have {least} or more pictures: got 9 and {least - 1}$"):
        measure(randn(9, 2), randn(least - 1, 2))


# ----------------------------------------------------------------------------------------------------------- intervals


def test_interval_is_that_of_the_mean_where_the_mean_is_asked():
    values = torch.exp(0.01 * randn(2000)) * 3
    rows = jackknife(2000)
    assert torch.equal(rows.flatten().bincount(), torch.full((2000,), 19))  # each is left out once
    half = 1.96 * float(values.std()) / 2000**0.5
    for scale in ("log", "linear"):
        low, high = interval(float(values.mean()), values[rows].mean(-1), scale)
        assert low < values.mean() < high and (high - low) / 2 == pytest.approx(half, rel=0.5)


def test_interval_of_a_difference_has_both_sets_variance():
    widths = []
    for seed in range(20):
        x, y = randn(200, 1, seed=seed), 2 * randn(400, 1, seed=100 + seed)
        (found,) = estimated(lambda a, b: a.mean() - b.mean(), x, y)
        assert found.value == pytest.approx(float(x.mean() - y.mean()))
        widths.append((found.interval[1] - found.interval[0]) / 2)
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(2.09 * (1 / 200 + 4 / 400) ** 0.5, rel=0.15)


def test_intervals_cover_what_they_should():
    """The kernel distance of Gaussians at a known distance, 40 times over."""
    truth, inside = 22.0, 0
    for seed in range(40):
        x, y = randn(100, 1, seed=seed), randn(100, 1, seed=500 + seed) + 1
        low, high = estimated(kernel_distance, x, y)[0].interval
        inside += low < truth < high
    assert 33 <= inside <= 40  # 38 are expected; the estimate is skewed
    (found, _) = estimated(precision_recall, randn(50, 2), randn(50, 2, seed=1), "share")
    assert 0 <= found.interval[0] < found.value < found.interval[1] <= 1


def test_shares_and_averages():
    z, p, n = 1.959964, 0.3, 10
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    found = share(3, 10)
    expected = [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]  # Wilson (1927)
    assert found.value == 0.3 and found.interval == pytest.approx(expected, abs=1e-6)
    found = average(torch.tensor([1.0, 3.0]))
    assert found.value == 2 and found.interval == pytest.approx((2 - 1.96, 2 + 1.96))


# ----------------------------------------------------------------------------------------------------------- retrieval


def test_own_text_is_picked_by_who_knows_it_and_by_chance_otherwise():
    texts = torch.nn.functional.normalize(randn(30, 16), dim=1)
    own = torch.arange(3000) % 30
    assert retrieved(texts[own], texts, own, 30).all()
    blind = retrieved(torch.nn.functional.normalize(randn(3000, 16, seed=1), dim=1), texts, own, 5)
    assert float(blind.float().mean()) == pytest.approx(1 / 5, abs=3 * (0.16 / 3000) ** 0.5)
    # a second text that is nearer fools it exactly where that is among the k
    fooled = retrieved(texts[(own + 1) % 30], texts, own, 2)
    assert not retrieved(texts[(own + 1) % 30], texts, own, 30).any() and 0.2 < float(fooled.float().mean()) < 0.8
    with pytest.raises(ValueError, match="^k must be from 2 to the number of different texts, 30: got 31$"):
        retrieved(texts[own], texts, own, 31)


# -------------------------------------------------------------------------------------------------------------- copies


def test_copy_ratio_is_nearest_by_next(small_pieces):
    train = torch.tensor([[0.0], [0.1], [4.0], [10.0]]).double()
    pictures = torch.tensor([[1.0], [0.04], [8.0], [4.0]]).double()
    expected = [0.9 / 1, 0.04 / 0.06, 2 / 4, 0]
    torch.testing.assert_close(copy_ratios(pictures, train), torch.tensor(expected).double(), rtol=1e-9, atol=1e-7)
    # 0 and 0.1 are one picture: the next is 4
    expected = [0.9 / 3, 0.04 / 3.96, 2 / 4, 0]
    torch.testing.assert_close(copy_ratios(pictures, train, 0.2), torch.tensor(expected).double(), rtol=1e-9, atol=1e-7)
    far = [torch.inf, 0.04 / 9.96, 2 / 8, torch.inf]  # where only 0 and 10 are two pictures
    torch.testing.assert_close(copy_ratios(pictures, train, 9.95), torch.tensor(far).double(), rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(nearest(pictures, train), torch.tensor([0.9, 0.04, 2, 0]).double(), atol=1e-7, rtol=0)


def test_copied_pictures_are_found_and_new_ones_are_not():
    train, real, fresh = randn(600, 8), randn(400, 8, seed=1), randn(1000, 8, seed=2)
    found = copies(fresh, real, train, rate=0.05)
    assert found.drawn.interval[0] <= 0.05 + 0.02 and found.drawn.value < 0.09 and found.real.value < 0.09
    blurred = train[:500] + 0.05 * randn(500, 8, seed=3)
    assert copies(blurred, real, train, rate=0.05).drawn.value > 0.98
    half = torch.cat([fresh[:500], train[:500]])
    assert copies(half, real, train, rate=0.05).drawn.value == pytest.approx(0.5 + found.drawn.value / 2, abs=0.03)
    assert found.threshold == pytest.approx(float(copy_ratios(real, train).quantile(0.05)), rel=1e-6)


def test_copies_of_pictures_that_the_set_repeats_are_found():
    once = randn(300, 8)
    train = torch.cat([once, once, once + 0.01 * randn(300, 8, seed=1)])  # exactly, and nearly
    real, drawn = randn(300, 8, seed=2), once + 0.02 * randn(300, 8, seed=3)
    found = copies(drawn, real, train, rate=0.05)
    assert found.drawn.value > 0.98 and found.real.value < 0.1
    assert 0.03 < found.same < 1
    with pytest.raises(ValueError, match="^a copy rate needs two or more different training pictures: got 50, all al"):
        copies(drawn, real, torch.zeros(50, 8).double(), rate=0.05)


# ------------------------------------------------------------------------------------------------------------ features


def blobs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey pictures with a bright half: left, right, top or bottom."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    kinds = torch.randint(4, (count,), generator=generator)
    for picture, kind in zip(pixels, kinds.tolist(), strict=True):
        half = (picture[..., :4], picture[..., 4:], picture[..., :4, :], picture[..., 4:, :])[kind]
        half += 130
    return pixels, kinds


def test_random_features_have_unit_average_variance_and_are_always_the_same():
    pictures = randn(200, 1, 8, 8).float()
    features = RandomFeatures(pictures)(pictures)
    assert features.shape == (200, 32)
    assert float(features.var(0).mean()) == pytest.approx(1, rel=1e-6)
    correlated = torch.cov(features.T) - torch.diag(features.var(0))
    assert float(correlated.abs().max()) < 1e-6
    torch.testing.assert_close(RandomFeatures(pictures)(pictures[:3]), features[:3])


def test_the_classifier_learns_and_its_features_are_white():
    (pixels, kinds), (unseen, truth) = blobs(64), blobs(100, seed=1)
    judge = train_class_judge(pixels, kinds, 4, 20, 0, torch.device("cpu"))
    assert float((judge.read(unseen) == truth).float().mean()) > 0.9
    features = judge(pixels)
    torch.testing.assert_close(torch.cov(features.T), torch.eye(features.shape[1]).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(judge(unseen[:3]), judge(unseen)[:3], rtol=1e-4, atol=1e-4)
    first, again = (train_class_judge(pixels[:20], kinds[:20], 4, 2, 0, torch.device("cpu")) for _ in range(2))
    torch.testing.assert_close(first(unseen), again(unseen))


def test_the_two_towers_learn_which_caption_is_whose():
    (pixels, kinds), (unseen, truth) = blobs(64), blobs(100, seed=1)
    texts = ["light on the left", "bright at right", "sun above", "a glow below"]
    captions = [[texts[kind], texts[kind].upper()] for kind in kinds.tolist()]
    state = torch.get_rng_state()
    judge = train_caption_judge(pixels, captions, 20, 0, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    hits = retrieved(judge.of_pictures(unseen), judge.of_texts(texts), truth, 4)
    assert float(hits.float().mean()) > 0.9
    torch.testing.assert_close(judge.of_texts(["SUN  above"]), judge.of_texts(["sun above"]))
    assert TextTower()([""]).isfinite().all()


def test_a_picture_encoder_of_transformers_is_loaded_and_asked(tmp_path):
    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    text = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 4}  # fmt: skip
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=6))
    clip.eval().save_pretrained(tmp_path / "clip")
    size = {"height": 16, "width": 16}
    processor = transformers.CLIPImageProcessorPil(size=size, crop_size=size)
    processor.save_pretrained(tmp_path / "clip")
    pixels, _ = blobs(5)
    found = PretrainedFeatures(str(tmp_path / "clip"), torch.device("cpu"))(pixels)
    prepared = processor(images=[Image.fromarray(x[0].numpy()).convert("RGB") for x in pixels], return_tensors="pt")
    with torch.no_grad():
        expected = clip.visual_projection(clip.vision_model(prepared.pixel_values).pooler_output)
    torch.testing.assert_close(found, expected.double())
    config = transformers.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    transformers.BitImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False).save_pretrained(
        tmp_path / "dino"
    )
    assert PretrainedFeatures(str(tmp_path / "dino"), torch.device("cpu"))(pixels).shape == (5, 8)

    # A weight that is missing would be drawn, and figures with it
    tensors = load_file(tmp_path / "dino" / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "layernorm.weight"}, tmp_path / "dino" / "model.safetensors")
    with pytest.raises(UserError, match=r"cannot be loaded: 1 weights are missing or of another shape \(layernorm.wei"):
        PretrainedFeatures(str(tmp_path / "dino"), torch.device("cpu"))


def test_a_pooler_that_was_not_published_is_not_asked(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    vit = transformers.ViTModel(config).eval()
    vit.save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    processor = transformers.ViTImageProcessorPil(size=size)
    processor.save_pretrained(tmp_path)
    pixels, _ = blobs(5)
    images = [Image.fromarray(x[0].numpy()).convert("RGB") for x in pixels]
    with torch.no_grad():
        output = vit(processor(images=images, return_tensors="pt").pixel_values)
    look = PretrainedFeatures(str(tmp_path), torch.device("cpu"))
    torch.testing.assert_close(look(pixels), output.pooler_output.double())
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("pooler")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    look = PretrainedFeatures(str(tmp_path), torch.device("cpu"))
    torch.testing.assert_close(look(pixels), output.last_hidden_state[:, 0].double())


def test_what_cannot_be_had_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match=f"^features '{tmp_path}' cannot be loaded: [^\n]+$"):
        PretrainedFeatures(str(tmp_path), torch.device("cpu"))
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match="^features 'inception' need torch_fidelity.*; pip install 'mezzotint\\[eval"):
        InceptionFeatures(torch.device("cpu"))
