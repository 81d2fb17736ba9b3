"""The blocks of the modular pipeline draw, bit for bit, what the pipelines of their tasks draw, and can be taken apart.
How a checkpoint carries them is in `tests/test_hub_roundtrip.py`."""

import numpy as np
import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from mezzotint import MezzotintBlocks, MezzotintImg2ImgPipeline, MezzotintInpaintPipeline, MezzotintPipeline

PICTURE = torch.linspace(0, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
MASK = torch.zeros(1, 8, 8).index_fill(2, torch.tensor([2, 3]), 1.0)
LARGE = {
    "image": torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(0)),
    "mask_image": torch.zeros(1, 24, 20),
}
LARGE["mask_image"][:, 10:14, 8:12] = 1
CALLS = {
    "text": (MezzotintPipeline, {}),
    "texts": (
        MezzotintPipeline,
        {"prompt": ["a hat", "a boot"], "negative_prompt": "blue", "num_images_per_prompt": 2},
    ),
    "no guidance": (MezzotintPipeline, {"guidance_scale": 1, "negative_prompt": "a long text that nothing reads"}),
    "another size": (MezzotintPipeline, {"height": 10, "width": 13}),
    "image": (MezzotintImg2ImgPipeline, {"image": PICTURE, "num_images_per_prompt": 2}),
    "image as it is": (MezzotintImg2ImgPipeline, {"image": PICTURE, "strength": 0, "num_images_per_prompt": 2}),
    "hole": (MezzotintInpaintPipeline, {"image": PICTURE, "mask_image": MASK, "num_images_per_prompt": 2}),
    "hole, cropped": (MezzotintInpaintPipeline, LARGE | {"padding_mask_crop": 2, "strength": 0.9, "num_resamples": 2}),
}


@pytest.fixture(scope="module")
def pipe(make_pipe):
    return make_pipe()


def around(pipe, blocks=None) -> ModularPipeline:
    modular = (blocks or MezzotintBlocks()).init_pipeline()
    modular.update_components(**{name: x for name, x in pipe.components.items() if name in modular.component_names})
    modular.set_progress_bar_config(disable=True)
    return modular


def drawn(pipe, cls, **call) -> np.ndarray:
    pipe = cls(**pipe.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images


@pytest.mark.parametrize("name", CALLS)
def test_the_pictures_are_the_pipelines(pipe, name):
    cls, call = CALLS[name]
    call = {"prompt": "a hat", "num_inference_steps": 4, "eta": 1.0} | call
    wanted = drawn(pipe, cls, **call)
    found = around(pipe)(**call, generator=torch.Generator().manual_seed(0), output_type="np", output="images")
    assert len(wanted) == np.size(call["prompt"]) * call.get("num_images_per_prompt", 1)
    np.testing.assert_array_equal(found, wanted)


def test_a_network_that_reads_no_text_draws_without(make_pipe):
    pipe = make_pipe(cross_attention_dim=None)
    call = {"num_inference_steps": 2, "num_images_per_prompt": 2}
    found = around(pipe)(**call, generator=torch.Generator().manual_seed(0), output_type="np", output="images")
    np.testing.assert_array_equal(found, drawn(pipe, MezzotintPipeline, **call))


def test_a_workflow_has_the_blocks_of_its_task(pipe):
    blocks = MezzotintBlocks()
    assert blocks.available_workflows == ["text2image", "image2image", "inpainting"]
    for name, (cls, call) in {
        "text2image": CALLS["text"],
        "image2image": CALLS["image"],
        "inpainting": CALLS["hole"],
    }.items():
        workflow = blocks.get_workflow(name)
        assert {block.task for block in list(workflow.sub_blocks.values())[1:]} == {cls}
        call = {"prompt": "a hat", "num_inference_steps": 2} | call
        found = around(pipe, workflow)(
            **call, generator=torch.Generator().manual_seed(0), output_type="np", output="images"
        )
        np.testing.assert_array_equal(found, drawn(pipe, cls, **call))


class Mirror(ModularPipelineBlocks):
    """A block of somebody's."""

    inputs = [InputParam("latents")]

    def __call__(self, components, state):
        state.set("latents", state.get("latents").flip(-1))
        return components, state


def test_the_parts_can_be_run_alone_and_others_put_between(pipe):
    blocks, call = MezzotintBlocks(), {"prompt": "a hat", "num_inference_steps": 2}
    wanted = drawn(pipe, MezzotintPipeline, **call)
    text = around(pipe, blocks.sub_blocks.pop("text_encoder"))
    assert set(text.component_names) == {"text_encoder", "tokenizer", "unet", "guidance_unet"}
    text.update_components(unet=None)  # prompts can be read before there is a U-Net
    names = ("prompt_embeds", "prompt_attention_mask")
    said = text(prompt=call.pop("prompt"), output=names)
    call |= said | {"generator": torch.Generator().manual_seed(0), "output_type": "np", "output": "images"}
    blocks.sub_blocks.insert("mirror", Mirror(), 1)
    np.testing.assert_array_equal(around(pipe, blocks)(**call), wanted[:, :, ::-1])


def test_every_argument_of_the_pipelines_is_there_and_described():
    inputs = {x.name: x for x in MezzotintBlocks().inputs}
    for cls in (MezzotintPipeline, MezzotintImg2ImgPipeline, MezzotintInpaintPipeline):
        taken = set(cls.__call__.__annotations__) - {"return", "return_dict"}
        assert taken <= inputs.keys()
    assert [name for name, x in inputs.items() if not x.description] == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": "a hat", "num_inference_steps": 0}, "num_inference_steps must be a positive whole number: got 0"),
        ({}, "exactly one of prompt and prompt_embeds must be given: got none"),
        ({"prompt": "a hat", "output_type": "jpeg"}, "output_type must be one of .*: got 'jpeg'"),
        ({"prompt": "a hat", "mask_image": MASK}, "image must be a picture"),
    ],
)
def test_bad_input_is_refused_by_the_pipelines_own_words(pipe, call, words):
    with pytest.raises(ValueError, match=words):
        around(pipe)(**{"num_inference_steps": 1} | call)


def test_a_component_that_is_not_loaded_is_told_of():
    with pytest.raises(ValueError, match=r"unet must be loaded .*: pipe.load_components\(trust_remote_code=True\)"):
        MezzotintBlocks().init_pipeline()(prompt_embeds=torch.zeros(1, 2, 16))
