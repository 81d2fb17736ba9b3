"""Every recipe that is shipped can be run: its settings parse and its networks fit together."""

import dataclasses

import pytest
import torch
import yaml

from mezzotint import MezzotintScheduler, MezzotintUNetModel
from mezzotint_training.config import tasks
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.recipe import RECIPES, recipes
from mezzotint_training.config.rules import known_arguments
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.sizes import Facts
from mezzotint_training.data.source import level_factor, settled_size
from mezzotint_training.modalities import audio, images, molecules, video, voxels
from mezzotint_training.networks.text import new_text_encoder

# The header of a sample, by modality
FIRST = {
    "image": images.Header(8, 8, False),
    "audio": audio.Header(4000, 8000, 2, 8000),
    "video": video.Header(8, 32, 32),
    "voxels": voxels.Header((16, 16, 16), 4, 1),
    "molecules": molecules.Header(("[C]",), "selfies"),
}


def settings_of(recipe: str) -> TrainConfig:
    text = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    data = [] if "dataset_name" in text else ["--train_data_dir", "pictures"]
    return parse_args(["--recipe", recipe, *data], description="")


@pytest.mark.parametrize("recipe", recipes())
def test_its_networks_fit_together(recipe):
    settings = settings_of(recipe)
    first = FIRST[settings.modality or "image"]
    shape, axes = tasks.channels(settings, first.channels), tasks.downsample_axes(settings)
    shape |= {"spatial_dims": tasks.modality(settings).spatial_dims, "downsample_axes": axes}
    with torch.device("meta"):
        text_encoder, tokenizer = new_text_encoder(settings)
        arguments = known_arguments(settings.unet, MezzotintUNetModel)
        unet = MezzotintUNetModel(cross_attention_dim=text_encoder.config.hidden_size, **arguments, **shape)
        size = (72,)  # which molecules have from the set
        if settings.modality != "molecules":
            size, _ = settled_size(None, settings, None, first)
        level_factor(settings, Facts(None, size, first.channels, downsample_axes=axes))
        text = text_encoder(torch.zeros(2, 5, dtype=torch.long)).last_hidden_state
        found = unet(torch.zeros(2, shape["in_channels"], *size), torch.zeros(2), text).sample
        assert found.shape == (2, shape["out_channels"], *size)
    MezzotintScheduler(**known_arguments(settings.scheduler, MezzotintScheduler))
    longest = max((len(tokenizer(prompt).input_ids) for prompt in settings.validation_prompts), default=0)
    assert longest <= settings.max_text_length


@pytest.mark.parametrize("recipe", recipes())
def test_it_holds_differences_from_the_defaults_only(recipe):
    text = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    defaults = dataclasses.asdict(TrainConfig(dataset_name="any"))
    assert [name for name, value in text.items() if value == defaults[name]] == []


def test_digits_needs_no_download_and_says_whose_the_pictures_are():
    settings = settings_of("digits")
    assert settings.dataset_name == "digits" and settings.text_encoder_name_or_path is None
    assert "CC BY 4.0" in settings.dataset_license
    assert settings.pretrained_model_name_or_path is None and not settings.push_to_hub
