"""The classifier against finite differences, against a Gaussian mixture whose classes are known in closed form, and
against itself: saved, loaded, in another number of dimensions, within its callers' gradient modes."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from mezzotint import MezzotintClassifier, MezzotintPipeline, MezzotintScheduler
from mezzotint.models.encoder_mezzotint import MezzotintEncoderMixin

TINY = {
    "num_classes": 3,
    "id2label": {0: "nought", 1: "one", 2: "two"},
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "transformer_layers_per_block": (0, 1),
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def make(**config) -> MezzotintClassifier:
    """With no parameter left at zero."""
    torch.manual_seed(0)
    classifier = MezzotintClassifier(**TINY | config).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return classifier


def randn(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_score_is_the_derivative_of_the_log_probability(dims):
    classifier = make(spatial_dims=dims, in_channels=2, sample_size=4).double()
    x, direction = (randn(3, 2, *[4] * dims, seed=s, dtype=torch.float64) for s in (1, 2))
    t, labels = torch.tensor([3.5, 400.0, 999.0]), torch.tensor([2, 0, 1])

    def log_p(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return classifier(x, t).logits.log_softmax(1)[torch.arange(3), labels]

    h = 1e-5
    expected = (log_p(x + h * direction) - log_p(x - h * direction)) / (2 * h)  # (B,), the error is of order h^2
    assert expected.abs().min() > 1e-3
    actual = (classifier.score(x, t, labels) * direction).flatten(1).sum(1)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def test_patches_are_read_as_the_channels_of_one_position():
    classifier, x = make(patch_size=2), randn(2, 3, 16, 12)
    plain = make(in_channels=12)
    plain.load_state_dict(classifier.state_dict())
    assert torch.equal(classifier(x, 300).logits, plain(torch.nn.functional.pixel_unshuffle(x, 2), 300).logits)
    shuffled = torch.nn.functional.pixel_shuffle(plain.score(torch.nn.functional.pixel_unshuffle(x, 2), 300, 1), 2)
    torch.testing.assert_close(classifier.score(x, 300, 1), shuffled)


def test_scores_of_all_classes_cancel_under_their_probabilities():
    """sum_y p(y | x) grad log p(y | x) = grad sum_y p(y | x) = 0."""
    classifier, x = make().double(), randn(2, 3, 8, 8, dtype=torch.float64)
    p = classifier(x, 300).logits.softmax(1)
    scores = torch.stack([classifier.score(x, 300, y) for y in range(3)], dim=1)  # (B, classes, C, H, W)
    assert scores.abs().amax((2, 3, 4)).min() > 1e-3
    assert (p[..., None, None, None] * scores).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_need_no_gradients(mode):
    classifier, x, t, labels = make(), randn(2, 3, 8, 8), torch.tensor([7.0, 900.0]), torch.tensor([1, 2])
    expected = classifier.score(x, t, labels)
    with mode():
        actual = classifier.score(x.clone(), t.clone(), labels.clone())
        assert not torch.is_grad_enabled() and not actual.requires_grad
        assert torch.equal(actual, expected)
        assert torch.equal(actual + 0, expected)
    assert all(p.grad is None for p in classifier.parameters())
    singles = [classifier.score(x[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(expected, torch.cat(singles), rtol=0, atol=1e-6)


def test_half_precision_takes_and_gives_full():
    classifier, x = make(), randn(2, 3, 8, 8)
    exact, half = classifier.score(x, 300, 1), classifier.to(torch.bfloat16).score(x, 300, 1)
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.05 * exact.norm()


def test_weights_stored_in_another_precision_than_is_computed_in():
    classifier, rounded, x = make(), make(), randn(2, 3, 8, 8)
    classifier.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    kinds = {parameter.dtype for parameter in classifier.parameters()}
    assert kinds == {torch.float8_e4m3fn, torch.bfloat16}
    for stored, parameter in zip(classifier.parameters(), rounded.parameters(), strict=True):
        parameter.data = parameter.data.to(stored.dtype).to(torch.bfloat16)
    assert torch.equal(classifier.score(x, 300, 1), rounded.score(x, 300, 1))


def test_gradient_checkpointing_changes_nothing_but_what_is_kept(monkeypatch):
    classifier, x = make(), randn(2, 3, 8, 8)
    expected, calls = classifier.score(x, 300, 1), []
    classifier.enable_gradient_checkpointing()
    inner = classifier._gradient_checkpointing_func
    monkeypatch.setattr(classifier, "_gradient_checkpointing_func", lambda *a: (calls.append(a), inner(*a))[1])
    assert torch.equal(classifier.score(x, 300, 1), expected)
    assert len(calls) == 3  # two levels and the middle


# -------------------------------------------------------------------------------------------- what it is there for


def test_guidance_by_an_exact_classifier_is_the_conditional_score():
    """For a mixture of Gaussians of one variance the noisy classes are Gaussians again, so p(y | x_t) is a softmax of
    linear functions: with a classifier that says just that, grad log p_t(x) + `score` is grad log p_t(x | y)."""
    scheduler, t, s2 = MezzotintScheduler(), 412.5, 0.3**2
    means = randn(3, 6, seed=3, dtype=torch.float64)  # of each class, on a sample of 6 positions
    ratio = scheduler.timesteps_to_sigmas(torch.tensor([t])).double().item()
    alpha, sigma = 1 / (1 + ratio**2) ** 0.5, ratio / (1 + ratio**2) ** 0.5
    variance = alpha**2 * s2 + sigma**2

    class Exact(MezzotintClassifier):
        def forward(self, sample, timestep, return_dict=True):
            # log N(x; alpha m_y, variance) up to what all classes share
            logits = sample.flatten(1) @ (alpha * means).T / variance - (alpha * means).square().sum(1) / (2 * variance)
            return (logits,)

    classifier = Exact(**TINY | {"spatial_dims": 1, "in_channels": 1}).double()
    x = randn(4, 1, 6, seed=4, dtype=torch.float64)
    residual = (alpha * means - x) / variance  # (B, classes, 6)
    posterior = (-(alpha * means - x).square().sum(2) / (2 * variance)).softmax(1)  # (B, classes), equal priors
    unconditional = (posterior[..., None] * residual).sum(1, keepdim=True)  # (B, 1, 6)
    for label in range(3):
        guided = unconditional + classifier.score(x, t, label)
        torch.testing.assert_close(guided, residual[:, label : label + 1], rtol=1e-9, atol=1e-9)
        assert (guided - unconditional).abs().max() > 0.1


# -------------------------------------------------------------------------------------------------- names and files


def test_classes_go_by_number_or_name():
    classifier = make()
    x = randn(2, 3, 8, 8)
    assert classifier.get_label_ids(["two", 0, "one"]).tolist() == [2, 0, 1]
    assert classifier.get_label_ids(torch.tensor([2, 1])).tolist() == [2, 1]
    assert torch.equal(classifier.score(x, 300, ["two", "one"]), classifier.score(x, 300, torch.tensor([2, 1])))
    assert torch.equal(classifier.score(x, 300, "two"), classifier.score(x, 300, [2, 2]))
    for wrong in (3, -1, "three", 1.5, None):
        with pytest.raises(ValueError, match=r"^a class must be a number from 0 to 2, or one of 'nought', 'one', 'tw"):
            classifier.get_label_ids([0, wrong])
    with pytest.raises(ValueError, match="^a class must be a number from 0 to 2: got 'two'$"):
        make(id2label=None).get_label_ids("two")


def test_saved_and_loaded_it_is_the_same(tmp_path):
    classifier, x = make(), randn(2, 3, 8, 8)
    classifier.save_pretrained(tmp_path, safe_serialization=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    loaded = MezzotintClassifier.from_pretrained(tmp_path)
    assert isinstance(loaded, MezzotintEncoderMixin) and not loaded.training
    assert loaded.config.id2label == classifier.config.id2label == TINY["id2label"]
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.score(x, 300, "one"), classifier.score(x, 300, "one"))

    weights = load_file(tmp_path / WEIGHTS)
    save_file({k: v for k, v in weights.items() if k != "head.bias"}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"must be those of its config: 1 missing \(head.bias\)"):
        MezzotintClassifier.from_pretrained(tmp_path)


def test_one_whose_code_was_the_unets_file_still_loads_in_both_lives(make_pipe, tmp_path, monkeypatch):
    """As in checkpoints that were written before it had a file of its own."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe, x, folder = make_pipe(), randn(2, 3, 8, 8), tmp_path / "pipe"
    pipe.register_modules(classifier=make())
    pipe.save_pretrained(folder)
    (new,) = folder.glob("classifier/classifier_mezzotint_v*.py")
    new.unlink()
    (old,) = Path(__file__).parents[1].glob("emoji-16/unet/unet_mezzotint_v*.py")
    shutil.copy(old, folder / "classifier")
    for name in ("model_index.json", "classifier/config.json"):
        (folder / name).write_text((folder / name).read_text().replace(new.stem, old.stem))
    stranger = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True).classifier
    assert type(stranger).__module__.endswith(old.stem)
    installed = MezzotintPipeline.from_pretrained(folder).classifier
    assert type(installed) is MezzotintClassifier
    for loaded in (stranger, installed):
        assert torch.equal(loaded.score(x, 300, "one"), pipe.classifier.score(x, 300, "one"))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"num_classes": 1, "id2label": None}, "num_classes must be a whole number from 2 to 1048576: got 1"),
        ({"num_classes": 4}, "id2label must have a name of its own for 0 to 3: got"),
        ({"id2label": {0: "a", 1: "b", 2: "a"}}, "id2label must have a name of its own for 0 to 2: got"),
        ({"spatial_dims": 4}, "spatial_dims must be a whole number from 1 to 3: got 4"),
        ({"sample_std": (0.0,)}, "sample_std must be positive"),
        ({"num_classes": "three"}, "num_classes must be a whole number from 2 to 1048576: got 'three'"),
        ({"id2label": ["a", "b", "c"]}, "id2label must have a name of its own for 0 to 2: got"),
        ({"id2label": {"a": 0, "b": 1, "c": 2}}, "id2label must have a name of its own for 0 to 2: got"),
        ({"id2label": {0: "a", 1: "b", 2: 3}}, "id2label must have a name of its own for 0 to 2: got"),
    ],
)
def test_what_does_not_fit_together_is_refused(config, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        MezzotintClassifier(**TINY | config)


def test_shapes_that_it_cannot_take_are_refused():
    with pytest.raises(ValueError, match="^sample must have 4 axes and 3 channels: got shape"):
        make()(randn(2, 1, 8, 8), 3)
    with pytest.raises(ValueError, match="^spatial sizes must be multiples of 2"):
        make()(randn(2, 3, 7, 8), 3)
