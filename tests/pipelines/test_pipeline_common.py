"""What every pipeline of diffusers keeps, as its common tests ask for it, and what its users try beyond them."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.guiders import ClassifierFreeGuidance
from test_pipeline_mezzotint import draw, load_as_shipped, load_installed

from mezzotint import MezzotintClassifier, MezzotintPipeline


def one_line(error) -> None:
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------- components


@pytest.mark.parametrize("load", [load_installed, load_as_shipped])
def test_assigned_components_are_saved(make_pipe, make_unet, tmp_path, monkeypatch, load):
    """As they would be, had the pipeline been made with them; and what is taken away again is not."""
    pipe = make_pipe()
    pipe.guider = ClassifierFreeGuidance(guidance_scale=4.0)
    pipe.guidance_unet = make_unet(block_out_channels=(8, 16))
    pipe.classifier = MezzotintClassifier(
        2, sample_size=8, block_out_channels=(8, 16), transformer_layers_per_block=(0, 0), norm_num_groups=4
    )
    made_with = MezzotintPipeline(**pipe.components)
    assert dict(pipe.config) == dict(made_with.config)
    pipe.save_pretrained(tmp_path / "all")
    loaded = load(tmp_path / "all")
    assert loaded.guider.guidance_scale == 4.0
    for name in ("guidance_unet", "classifier"):
        expected, found = getattr(pipe, name).state_dict(), getattr(loaded, name).state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), draw(pipe))

    pipe.guider = pipe.guidance_unet = pipe.classifier = None
    pipe.save_pretrained(tmp_path / "none")
    assert not any((tmp_path / "none" / name).exists() for name in ("guider", "guidance_unet", "classifier"))
    assert load_installed(tmp_path / "none").guider is None


def stable_diffusion(make_pipe) -> StableDiffusionPipeline:
    """A pipeline of stock components around the text encoder of ours."""
    ours = make_pipe()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        in_channels=3,
        out_channels=3,
    )
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=ours.text_encoder,
        tokenizer=ours.tokenizer,
        unet=unet,
        scheduler=ours.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_from_pipe_of_stable_diffusion_takes_what_fits(make_pipe):
    theirs, ours = stable_diffusion(make_pipe), make_pipe()
    pipe = MezzotintPipeline.from_pipe(theirs, unet=ours.unet)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.text_encoder is theirs.text_encoder and pipe.unet is ours.unet and pipe.guider is None
    assert torch.equal(draw(pipe), draw(ours))


# ---------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("way", ["weight_name", "path"])
def test_a_pickled_lora_is_not_read(make_pipe, tmp_path, monkeypatch, way):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("unpickled"))
    file = tmp_path / "x.bin"
    file.write_bytes(b"")
    source = (tmp_path, {"weight_name": file.name}) if way == "weight_name" else (file, {})
    with pytest.raises(ValueError, match=r"^a LoRA is read from a \.safetensors file, .*: got '.*x\.bin'$") as error:
        make_pipe().load_lora_weights(source[0], **source[1])
    one_line(error)


@pytest.mark.parametrize(
    "weights", [{"unet": {"down": 0.5, "mid": 1.0}}, [{"unet": {"down": {"block_1": [0.5, 1.0]}}}], [[0.5, 1.0]], "1"]
)
def test_weights_of_single_blocks_are_refused(make_pipe, weights):
    with pytest.raises(ValueError, match="^adapter_weights must be a number for an adapter, or .*: got ") as error:
        make_pipe().set_adapters("a", weights)
    one_line(error)
