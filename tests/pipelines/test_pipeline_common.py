"""What every pipeline of diffusers keeps, as its common tests ask for it, and what its users try beyond them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import LMSDiscreteScheduler, SASolverScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback, SDXLCFGCutoffCallback
from diffusers.guiders import (
    AutoGuidance,
    ClassifierFreeGuidance,
    MagnitudeAwareGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.hooks import LayerSkipConfig
from peft import LoraConfig
from test_pipeline_mezzotint import by_hand, close, draw, load_as_shipped, load_installed

from mezzotint import MezzotintClassifier, MezzotintImg2ImgPipeline, MezzotintPipeline


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


def test_a_network_that_cannot_be_drawn_with_is_refused_at_once(make_pipe):
    theirs, pipe = stable_diffusion(make_pipe), make_pipe()
    said = "^unet must be one whose config has the data's sample_mean and sample_std, .*: got UNet2DConditionModel$"
    with pytest.raises(ValueError, match=said) as error:
        MezzotintPipeline.from_pipe(theirs)
    one_line(error)
    pipe.unet = theirs.unet
    pipe.unet.register_forward_pre_hook(lambda *args: pytest.fail("a step was taken"))
    with pytest.raises(ValueError, match=said):
        draw(pipe)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_layers_are_not_offloaded_from_the_cpu_to_itself(make_pipe, device):
    with pytest.raises(ValueError, match="^device must be an accelerator, .*: got 'cpu'$"):
        make_pipe().enable_sequential_cpu_offload(device=device)


# -------------------------------------------------------------------------------------------------------- callbacks


def test_diffusers_callbacks_say_themselves_what_they_get(make_pipe):
    """Guidance is off after the step that `SDCFGCutoffCallback` names, as in the loop by hand."""
    pipe = make_pipe()
    kwargs = {"guidance_scale": 3.0, "output_type": "latent"}
    output = draw(pipe, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1), **kwargs)
    pipe.scheduler.set_timesteps(4)

    def change(i, latents, guidance_scale):
        return latents, 1.0 if i == 1 else guidance_scale

    close(output, by_hand(pipe, pipe.scheduler.timesteps, guidance_scale=3.0, change=change))
    several = MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)])
    assert torch.equal(draw(pipe, callback_on_step_end=several, **kwargs), output)


def test_a_pipeline_says_where_a_callback_left_its_guidance(make_pipe):
    pipe = make_pipe()

    def more(pipe, i, t, tensors):
        pipe._guidance_scale += 1
        return tensors

    draw(pipe, guidance_scale=2.0, callback_on_step_end=more)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps


@pytest.mark.parametrize("kwargs", [{"prompt": ["a red boot", "a cat"]}, {"num_images_per_prompt": 2}], ids=str)
def test_a_callback_may_not_give_all_pictures_the_text_of_one(make_pipe, kwargs):
    callback = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    with pytest.raises(ValueError, match="^prompt_embeds of a callback must have 2 or 4 rows: got 1$") as error:
        draw(make_pipe(), callback_on_step_end=callback, **kwargs)
    one_line(error)


@pytest.mark.parametrize("which", ["given", "original", "of another task"])
@pytest.mark.parametrize("scheduler", [None, LMSDiscreteScheduler, SASolverScheduler])
def test_a_callback_may_draw_with_the_pipeline_in_which_it_is_called(make_pipe, scheduler, which):
    """With other steps and another guidance, and the call around it goes on as if nothing had been."""
    pipe = make_pipe()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    scales = []

    def inner(run, i, t, tensors):
        other = {"given": run, "original": pipe}.get(which) or MezzotintImg2ImgPipeline.from_pipe(run)
        more = {"image": torch.zeros(1, 3, 8, 8), "strength": 1.0} if which == "of another task" else {}
        other("inner", num_inference_steps=3, guidance_scale=1.0, generator=torch.Generator().manual_seed(7), **more)
        scales.append(run.guidance_scale)
        return {}

    assert torch.equal(draw(pipe, guidance_scale=3.0, callback_on_step_end=inner), draw(pipe, guidance_scale=3.0))
    assert len(scales) >= 4 and set(scales) == {3.0}


def test_a_call_within_a_callback_stops_with_the_one_around_it(make_pipe):
    pipe, taken = make_pipe(), []

    def within(run, i, t, tensors):
        taken.append(i)
        pipe._interrupt = True
        return {}

    def around(run, i, t, tensors):
        run("inner", num_inference_steps=4, callback_on_step_end=within)
        return {}

    draw(pipe, callback_on_step_end=around)
    assert taken == [0]


def test_a_callback_for_other_pipelines_is_refused(make_pipe):
    with pytest.raises(ValueError, match="^callback_on_step_end_tensor_inputs must be among .*: got .*add_text_embeds"):
        draw(make_pipe(), callback_on_step_end=SDXLCFGCutoffCallback(cutoff_step_ratio=0.5))


# ----------------------------------------------------------------------------------------------------------- guiders


@pytest.mark.parametrize(
    "guider",
    [MagnitudeAwareGuidance(guidance_scale=3.0), SmoothedEnergyGuidance(guidance_scale=3.0, seg_guidance_layers=[0])],
    ids=lambda guider: type(guider).__name__,
)
def test_guiders_that_do_not_work_upstream_are_refused(make_pipe, guider):
    name = type(guider).__name__
    with pytest.raises(ValueError, match=f"^{name} does not work in this version of diffusers: take another guider$"):
        draw(make_pipe(), guider=guider)


def test_auto_guidance_takes_the_layers_by_name(make_pipe):
    """All of a layer dropped is a network without it."""
    pipe = make_pipe()
    config = LayerSkipConfig([0], fqn="mid_block.transformer_layers", dropout=1.0)
    guider = AutoGuidance(guidance_scale=3.0, auto_guidance_config=config, start=0.0)
    kwargs = {"guidance_scale": 1.0, "output_type": "latent"}
    plain = draw(pipe, **kwargs)
    guided = draw(pipe, guider=guider, **kwargs)
    assert (guided - plain).abs().max() > 0.01
    assert torch.equal(draw(pipe, **kwargs), plain)


# ---------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture
def adapted(make_pipe):
    """A pipeline with adapters in both networks, at weights of their own."""
    pipe = make_pipe()
    for model, layers in ((pipe.unet, ["to_q", "to_k", "to_out.0"]), (pipe.text_encoder, ["q", "v"])):
        model.add_adapter(LoraConfig(r=2, lora_alpha=3.0, target_modules=layers), "a")
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora" in key:
                    parameter.add_(torch.rand_like(parameter), alpha=0.4)
    pipe.set_adapters("a", {"unet": 0.8, "text_encoder": 0.6})
    return pipe


def test_adapters_are_weighed_in_one_call(adapted):
    """By the scale times the weights that they have, in both networks; the next call knows nothing of it."""
    whole = draw(adapted)
    half = draw(adapted, cross_attention_kwargs={"scale": 0.5})
    none = draw(adapted, cross_attention_kwargs={"scale": 0.0})
    assert torch.equal(draw(adapted), whole)
    assert torch.equal(draw(adapted, cross_attention_kwargs={"scale": 1.0}), whole)
    adapted.set_adapters("a", {"unet": 0.4, "text_encoder": 0.3})
    close(half, draw(adapted))
    adapted.disable_lora()
    close(none, draw(adapted))
    assert (half - whole).abs().max() > 0.01 and (half - none).abs().max() > 0.01


def test_threads_weigh_adapters_each_for_themselves(adapted):
    scales = [0.0, 0.5, 1.0, 2.0]
    one_by_one = [draw(adapted, cross_attention_kwargs={"scale": scale}) for scale in scales]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda scale: draw(adapted, cross_attention_kwargs={"scale": scale}), scales))
    assert all(torch.equal(a, b) for a, b in zip(found, one_by_one, strict=True))


@pytest.mark.parametrize("given", [{"scale": "1"}, {"scale": 1.0, "gligen": {}}, 0.5, {"scale": float("nan")}], ids=str)
def test_what_does_not_weigh_adapters_is_refused(make_pipe, given):
    with pytest.raises(ValueError, match=r"^cross_attention_kwargs must be {'scale': number}: got ") as error:
        draw(make_pipe(), cross_attention_kwargs=given)
    one_line(error)


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
