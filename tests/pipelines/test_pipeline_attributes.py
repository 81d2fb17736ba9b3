"""Attributes beside the text against a network whose prediction is a known sum of what it reads."""

import pytest
import torch
from test_pipeline_mezzotint import PROMPT, draw, seeded

from mezzotint import MezzotintImg2ImgPipeline, MezzotintPipeline
from mezzotint.pipelines.conditions_mezzotint import attribute_vector

KNOWN = {"class_labels": ["cat", "dog", "fox"], "smile": [0.5, 0.25], "age": [40.0, 10.0]}


@pytest.fixture
def pipe(make_pipe):
    pipe = make_pipe(attributes=KNOWN)
    pipe.unet.attribute_embedding[2].weight.data.normal_(generator=seeded(5))
    return pipe


@torch.no_grad()
def test_a_network_reads_attributes_as_they_are_documented(make_unet):
    unet, plain = make_unet(attributes=KNOWN), make_unet()
    unet.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.zeros_(unet.attribute_embedding[2].weight), torch.nn.init.zeros_(unet.attribute_embedding[2].bias)
    x, t, text = torch.randn(2, 3, 8, 8), 7, torch.randn(2, 4, unet.config.cross_attention_dim)
    assert torch.equal(unet(x, t, text).sample, plain(x, t, text).sample)  # at first it is without
    unet.attribute_embedding[2].weight.data.normal_(generator=seeded())
    some = torch.stack([attribute_vector(KNOWN, {"class_labels": "dog"}), attribute_vector(KNOWN, {"age": 50})])
    assert some.tolist() == [[0, 0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]  # in the order of the names
    nothing = unet(x, t, text).sample
    assert torch.equal(nothing, unet(x, t, text, attributes=torch.zeros(2, 7)).sample)
    found = unet(x, t, text, attributes=some).sample
    assert ((found - nothing).abs().amax((1, 2, 3)) > 1e-3).all()
    for shape in ((1, 7), (2, 6)):
        with pytest.raises(ValueError, match=r"^attributes must have shape \(2, 7\), by the config's: got"):
            unet(x, t, text, attributes=torch.zeros(shape))


@pytest.mark.parametrize("about", [[0.0, 0.0], ["a"], ["a", "a"], [1.0], ["a", 2.0], "ab", [float("nan"), 1.0]])
def test_attributes_that_are_none_are_refused(make_unet, about):
    with pytest.raises(ValueError, match="^attributes must be lists of classes, or mean and standard deviation: got"):
        make_unet(attributes={"x": about})


def known_sum(pipe) -> None:
    """A prediction that is a constant for each thing known: 1 for the text, 10 for the class, 100 for a smile."""

    def forward(sample, timestep, encoder_hidden_states=None, attributes=None, return_dict=True, **kwargs):
        said = torch.zeros(len(sample), 7) if attributes is None else attributes
        far, near = ((encoder_hidden_states.embedding - x).norm(dim=1) for x in pipe.texts)
        value = (near < far).float() + 10 * said[:, 3] + 100 * said[:, 6]
        return (value.reshape(-1, 1, 1, 1).expand_as(sample),)

    embeds, none, mask, none_mask = pipe.encode_prompt(PROMPT)
    pipe.texts = [pipe.unet.project_text(*text).embedding for text in ((none, none_mask), (embeds, mask))]
    pipe.unet.forward = forward


@pytest.mark.parametrize(
    "call, expected",
    [
        ({}, 2.5 * 111),
        ({"attributes": {}}, 2.5),
        ({"guidance_scale": 1.0}, 111),
        ({"attribute_guidance_scale": {"smile": 3.0}}, 2.5 * 11 + 3 * 100),
        ({"attribute_guidance_scale": {"smile": 3.0, "class_labels": 0.5}}, 2.5 * 1 + 3 * 100 + 0.5 * 10),
        ({"attribute_guidance_scale": {"age": 3.0}}, 2.5 * 111),  # which nothing is said of
        ({"attribute_guidance_scale": {"smile": 3.0}, "guidance_scale": 1.0}, 11 + 3 * 100),
        ({"attribute_guidance_scale": {"smile": 3.0}, "guidance_interval": (1e4, 1e5)}, 111),
    ],
)
def test_each_attribute_has_its_own_weight(pipe, call, expected):
    known_sum(pipe)
    pipe.scheduler = type(pipe.scheduler)(prediction_type="sample")
    call = {"attributes": {"class_labels": "dog", "smile": 1.0}, "guidance_scale": 2.5} | call
    found = draw(pipe, num_inference_steps=1, output_type="latent", **call)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-3, atol=1e-2)


def test_ways_to_say_a_class_are_alike(pipe):
    expected = draw(pipe, attributes={"class_labels": "fox", "smile": 0.8})
    for call in (
        {"class_labels": "fox", "attributes": {"smile": 0.8}},
        {"class_labels": 2, "attributes": {"smile": 0.8}},
        {"class_labels": torch.tensor([2]), "attributes": [{"smile": 0.8}]},
        {"attributes": {"smile": 0.8, "class_labels": 2}},
    ):
        assert torch.equal(draw(pipe, **call), expected)
    assert not torch.equal(draw(pipe, class_labels="fox"), expected)
    assert not torch.equal(draw(pipe), draw(pipe, class_labels="fox"))


def test_one_for_all_or_one_for_each(pipe):
    generators = [seeded(i) for i in range(4)]
    both = draw(pipe, ["a", "b"], class_labels=["cat", "fox"], num_images_per_prompt=2, generator=generators)
    one = draw(pipe, ["b"], class_labels="fox", num_images_per_prompt=2, generator=[seeded(2), seeded(3)])
    torch.testing.assert_close(both[2:], one, rtol=0, atol=1e-4)
    for call in ({"class_labels": ["cat"] * 3}, {"attributes": [{"age": 1.0}] * 3}):
        with pytest.raises(ValueError, match="^attributes needs one entry, or one for each of 2 prompts: got 3$"):
            draw(pipe, ["a", "b"], **call)


def test_of_a_network_without_text_as_many_are_drawn_as_are_said(make_pipe):
    pipe = make_pipe(attributes=KNOWN, cross_attention_dim=None)
    pipe.unet.attribute_embedding[2].weight.data.normal_(generator=seeded(5))
    found = draw(pipe, None, class_labels=["cat", "fox"], guidance_scale=3.0)
    assert len(found) == 2 and not torch.equal(found, draw(pipe, None, class_labels=["cat", "fox"], guidance_scale=1.0))


def test_other_tasks_read_them_and_a_checkpoint_keeps_them(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = MezzotintPipeline.from_pretrained(tmp_path)
    assert {name: list(about) for name, about in again.unet.config.attributes.items()} == KNOWN
    assert torch.equal(draw(again, class_labels="dog"), draw(pipe, class_labels="dog"))
    picture = torch.rand(1, 3, 8, 8, generator=seeded(1))
    img2img = MezzotintImg2ImgPipeline(**again.components)
    img2img.set_progress_bar_config(disable=True)
    assert not torch.equal(draw(img2img, image=picture, class_labels="dog"), draw(img2img, image=picture))


@pytest.mark.parametrize(
    "call, rule",
    [
        ({"attributes": {"smiles": 1.0}}, "^attributes must be among .*: got 'smiles'; near it is 'smile'$"),
        ({"attributes": {"smile": "much"}}, "^smile must be a finite number: got 'much'$"),
        ({"attributes": {"smile": float("nan")}}, "^smile must be a finite number: got nan$"),
        ({"class_labels": "wolf"}, r"^class_labels must be one of \['cat', 'dog', 'fox'\]: got 'wolf'$"),
        ({"class_labels": "Fox"}, "got 'Fox'; near it is 'fox'$"),
        ({"class_labels": 3}, "^class_labels must be one of .*: got 3$"),
        ({"attributes": 3}, "^attributes must be a dict of names and values, or a list of them: got 3$"),
        ({"attributes": []}, "^attributes must be a dict"),
        ({"attribute_guidance_scale": {"smil": 2.0}}, "^attribute_guidance_scale must be among .*near it is 'smile'$"),
        ({"attribute_guidance_scale": 2.0}, "^attribute_guidance_scale must be a dict of names and numbers: got 2.0$"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_nearest(pipe, call, rule):
    with pytest.raises(ValueError, match=rule) as error:
        draw(pipe, **call)
    assert "\n" not in str(error.value)


def test_a_network_that_reads_none_says_so(make_pipe):
    with pytest.raises(ValueError, match="^attributes must be among none: got 'smile'$"):
        draw(make_pipe(), attributes={"smile": 1.0})
