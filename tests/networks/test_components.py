"""Components: new ones at the data's scale, saved ones with every weight accounted for."""

import re

import datasets
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from tiny_run import TEXT_ENCODER, UNET

from mezzotint import MezzotintScheduler
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.sizes import Facts
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.source import Rows, first_sample, level_factor, look_at, settled_size
from mezzotint_training.modalities.images import Header
from mezzotint_training.networks import saved
from mezzotint_training.networks.components import new_components
from mezzotint_training.networks.saved import pretrained_components


def config(**settings) -> TrainConfig:
    return TrainConfig(**{"train_data_dir": "none", "unet": UNET, "text_encoder": TEXT_ENCODER} | settings)


def images(channels: int = 3, **settings) -> CaptionedSamples:
    """Four pictures of 8x6, each channel of another mean and spread."""
    rng = np.random.default_rng(0)
    pixels = (np.array([0, 100, 200]) + np.array([255, 100, 10]) * rng.random((4, 8, 6, 3))).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": [Image.fromarray(x) for x in pixels], "text": ["a"] * 4}, features)
    return CaptionedSamples(
        rows.cast_column("image", datasets.Image(decode=False)), config(**settings), channels, (8, 6)
    )


# ---------------------------------------------------------------------------------------------------------------- new


@pytest.mark.parametrize("channels", [1, 3])
def test_new_components_fit_the_data_and_each_other(channels):
    data = images(channels)
    torch.manual_seed(0)
    made = new_components(data.config, data)
    unet = made["unet"].config
    mean, std = data.statistics()
    assert (list(unet.sample_mean), list(unet.sample_std)) == (mean, std) and len(mean) == channels
    assert (unet.in_channels, unet.out_channels, unet.cross_attention_dim) == (channels, channels, 16)
    assert {name: list(unet[name]) if isinstance(unet[name], (list, tuple)) else unet[name] for name in UNET} == UNET
    text = made["text_encoder"](torch.tensor(made["tokenizer"](["a red boot"]).input_ids)).last_hidden_state
    assert made["unet"](torch.zeros(1, channels, 8, 6), 10, text).sample.shape == (1, channels, 8, 6)


def test_what_the_settings_say_of_unet_and_scheduler_holds():
    scheduler = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    data = images(unet=UNET | {"sample_mean": [0.5], "sample_std": [0.25]}, scheduler=scheduler)
    made = new_components(data.config, data)
    assert (list(made["unet"].config.sample_mean), list(made["unet"].config.sample_std)) == ([0.5], [0.25])
    assert {name: made["scheduler"].config[name] for name in scheduler} == scheduler


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"unet": {"block_out_chanels": [8]}},
            "MezzotintUNetModel has no argument 'block_out_chanels'; did you mean",
        ),
        ({"unet": UNET | {"block_out_channels": [16, 30]}}, "block_out_channels must be multiples of norm_num_groups"),
        ({"unet": UNET | {"layers_per_block": 0}}, "layers_per_block must be a whole number from 1 to 1024: got 0"),
        ({"unet": UNET | {"layers_per_block": "two"}}, "layers_per_block must be a whole number .*: got 'two'"),
        ({"unet": UNET | {"norm_num_groups": 0}}, "norm_num_groups must be a whole number .*: got 0"),
        ({"unet": UNET | {"cross_attention_dim": 32}}, "the unet's cross_attention_dim must be 16 .*: got 32"),
        ({"unet": UNET | {"cross_attention_dim": None}}, "the unet's cross_attention_dim must be 16 .*: got None"),
        ({"unet": UNET | {"out_channels": 1}}, "the unet's out_channels must be 3 .*: got 1"),
        ({"unet": UNET | {"spatial_dims": 3}}, "the unet's spatial_dims must be 2 .*: got 3"),
        (
            {"scheduler": {"beta_strat": 1}},
            r"MezzotintScheduler has no argument 'beta_strat'; did you mean beta_",
        ),
        ({"scheduler": {"prediction_type": "v"}}, "prediction_type must be one of 'epsilon', .*: got 'v'"),
        ({"text_encoder": {"d_modle": 8}}, "T5Config has no argument 'd_modle'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(settings, message):
    data = images(**settings)
    with pytest.raises(UserError, match=message) as error:
        new_components(data.config, data)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    "resolution, saved, expected",
    [
        (None, None, (8, 6)),  # the first picture's
        (None, 10, (10, 10)),
        (None, (12, 4), (12, 4)),
        ([16], 10, (16, 16)),
        ([16, 24], None, (16, 24)),
    ],
)
def test_the_size_is_the_one_asked_for_or_the_models_or_the_first_pictures(make_unet, resolution, saved, expected):
    known = {"unet": make_unet(sample_size=saved)} if saved else None
    assert settled_size(None, config(resolution=resolution), known, Header(8, 6, False))[0] == expected
    assert level_factor(config(unet={"block_out_channels": [8, 8]}), Facts(None, expected, 3)) == 2


@pytest.mark.parametrize(
    "resolution, levels, possible",
    [([9], 2, "8x8"), ([30, 33], 3, "32x32"), ([1], 3, "4x4"), (None, 4, "8x8"), ([31, 8], 4, "32x8")],
)
def test_a_size_that_the_model_cannot_halve_is_refused_with_one_that_it_can(make_unet, resolution, levels, possible):
    channels = [16] * levels
    unet = make_unet(block_out_channels=channels, transformer_layers_per_block=[0] * levels, sample_size=None)
    for known in (None, {"unet": unet}):
        settings = config(resolution=resolution, unet={"block_out_channels": channels})
        with pytest.raises(UserError) as error:
            size, _ = settled_size(None, settings, known, Header(8, 6, False))
            level_factor(settings, Facts(None, size, 3, tuple(channels) if known else None))
        assert str(error.value).startswith(
            f"resolution must be a multiple of {2 ** (levels - 1)} for a model of {levels}"
        )
        assert str(error.value).endswith(f"possible is {possible}")


def test_a_size_that_does_not_fit_the_patches_is_refused_with_one_that_does(make_unet):
    unet, rows = make_unet(patch_size=4, sample_size=None), Rows(images().rows, None)
    settings = config(unet={"block_out_channels": [8, 8], "patch_size": 4})
    message = "a multiple of 8 for a model of 2 levels and patches of 4 px: got 20x24, possible is 16x24"
    for known in (None, {"unet": unet}):
        settings.resolution = [20, 24]
        with pytest.raises(UserError, match=f"^resolution must be {message}$"):
            level_factor(settings, look_at(rows, settings, known))
        settings.resolution = [16, 24]
        assert level_factor(settings, look_at(rows, settings, known)) == 8
    for wrong, words in (
        (0, "at least 1: got 0"),
        (1025, "at most 1,024: got 1025"),
        ("wide", "of type int: got 'wide'"),
    ):
        with pytest.raises(UserError, match=f"^the unet's patch_size must be {words}$"):
            level_factor(config(unet={"patch_size": wrong}), Facts(None, (8, 8), 3))


@pytest.mark.parametrize("levels", [16, "16", []])
def test_levels_must_be_a_list(levels):
    with pytest.raises(UserError, match="block_out_channels must be a list of numbers, one a level: got"):
        level_factor(config(unet={"block_out_channels": levels}), Facts(None, (8, 8), 3))


def test_the_first_picture_that_can_be_read_counts():
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    good = images().rows[0]["image"]
    bad = {"bytes": b"words", "path": None}
    rows = datasets.Dataset.from_dict({"image": [bad, good], "text": ["a", "b"]}, features)
    assert first_sample(rows, config(on_bad_row="skip"))[:2] == (8, 6)
    with pytest.raises(UserError, match="picture in row 0 cannot be read"):
        first_sample(rows, config())
    with pytest.raises(UserError, match="no picture could be read; the first: picture in row 0"):
        first_sample(rows.select([0]), config(on_bad_row="skip"))


# --------------------------------------------------------------------------------------------------------------- saved


def test_a_saved_pipeline_comes_back_whole(make_pipe, tmp_path):
    pipe = make_pipe(sample_mean=(0.1, 0.2, 0.3))
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    loaded = pretrained_components(config(pretrained_model_name_or_path=str(tmp_path)))
    assert {name for name, x in loaded.items() if x is not None} == {"unet", "scheduler", "text_encoder", "tokenizer"}
    for name in ("unet", "text_encoder"):
        expected = getattr(pipe, name).state_dict()
        assert loaded[name].state_dict().keys() == expected.keys()
        assert all(torch.equal(loaded[name].state_dict()[key], expected[key]) for key in expected)
    assert list(loaded["unet"].config.sample_mean) == [0.1, 0.2, 0.3]
    assert type(loaded["scheduler"]) is DPMSolverMultistepScheduler
    assert loaded["tokenizer"]("ab").input_ids == pipe.tokenizer("ab").input_ids


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_what_was_fitted_to_a_network_stays_with_it(adapter, make_pipe, tmp_path):
    """Tables of the scheduler go where the weights will change, and stay where adapters are put beside them."""
    table = {"num_inference_steps": 2, "guidance_scale": 1.0, "taus": [900, 100], "sigmas": [9.0, 1.0]}
    table["coefficients"] = [[0.5, 0.5], [0.0, 1.0]]
    pipe = make_pipe()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, fitted_schedules=[table])
    pipe.save_pretrained(tmp_path)
    loaded = pretrained_components(config(pretrained_model_name_or_path=str(tmp_path), adapter=adapter))
    assert loaded["scheduler"].fitted_schedules == (None if adapter is None else [table])
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)  # which carries them along
    pipe.save_pretrained(tmp_path)
    loaded = pretrained_components(config(pretrained_model_name_or_path=str(tmp_path), adapter=adapter))
    back = MezzotintScheduler.from_config(loaded["scheduler"].config)
    assert back.fitted_schedules == (None if adapter is None else [table])


def test_a_saved_pipeline_without_text_comes_back_without(make_pipe, tmp_path):
    make_pipe(cross_attention_dim=None).save_pretrained(tmp_path)
    loaded = pretrained_components(config(pretrained_model_name_or_path=str(tmp_path)))
    assert loaded["text_encoder"] is None and loaded["tokenizer"] is None
    assert loaded["unet"].config.cross_attention_dim is None


def test_the_revision_is_asked_for(monkeypatch):
    asked = []

    def from_pretrained(source, revision):
        asked.append((source, revision))
        raise OSError("no such\nrevision")

    def load_config(source, revision):
        asked.append((source, revision))
        return {"_class_name": "MezzotintPipeline"}

    monkeypatch.setattr(saved.MezzotintPipeline, "load_config", load_config)
    monkeypatch.setattr(saved.MezzotintPipeline, "from_pretrained", from_pretrained)
    message = (
        "pretrained_model_name_or_path user/set cannot be loaded: no such revision (there is no folder of that name)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        pretrained_components(config(pretrained_model_name_or_path="user/set", revision="v1"))
    assert asked == [("user/set", "v1")] * 2
