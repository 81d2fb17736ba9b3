"""The page without a browser: which controls there are, what its functions make of their values, what they refuse."""

import functools
import inspect
import io
import os
import socket
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import tiny_pipes
import torch
from PIL import Image

from mezzotint import MezzotintClassifier, MezzotintLayoutPipeline, samples

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
gr = pytest.importorskip("gradio", reason="gradio is not installed: pip install 'mezzotint[demo]'")

from mezzotint import drawing  # noqa: E402
from mezzotint.demo.controls import UNKNOWN, Checkpoint  # noqa: E402
from mezzotint.demo.page import launch, make_page  # noqa: E402
from mezzotint.demo.pictures import noised  # noqa: E402
from mezzotint.demo.results import Results  # noqa: E402

KNOWN = {"class_labels": ["cat", "dog"], "age": [3.0, 1.0]}
RED = Image.new("RGB", (8, 8), "red")


class Handler:
    """What a button of the page does, by the name that its API has, where the drawing is not given."""

    def __init__(self, page, name: str):
        self.fn, *_ = sorted(
            (fn for fn in page.fns.values() if getattr(fn.fn, "__name__", None) == name),
            key=lambda fn: not any(isinstance(component, gr.State) for component in fn.outputs),
        )

    def values(self, **values) -> list:
        """The values of the inputs, their own where none is given."""
        names = [name for name in self.fn.fn.__signature__.parameters if name not in ("progress", "request")]
        assert values.keys() <= set(names), names
        return [values.get(name, block.value) for name, block in zip(names, self.fn.inputs, strict=True)]

    def __call__(self, **values):
        # what gradio does: a value that stands in the component comes as the component hands it on
        return self.fn.fn(*self.values(**values), lambda *args, **kwargs: None, None)


def controls(page, name: str) -> dict:
    """The controls of a task by the names of the values."""
    handler = Handler(page, name)
    names = [name for name in handler.fn.fn.__signature__.parameters if name not in ("progress", "request")]
    return dict(zip(names, handler.fn.inputs, strict=True))


MADE: dict = {}  # pages that tests share, by what they were made from: nothing in them changes


@pytest.fixture
def page_of(make_pipe):
    """`page_of(**unet_config)`: the page of a tiny pipeline, and the pipeline."""

    def make(classifier=None, **config):
        key = repr((classifier is not None, sorted(config.items())))
        if key not in MADE:
            pipe = make_pipe(**config)
            pipe.classifier = classifier
            MADE[key] = make_page(Checkpoint(pipe, "tiny")), pipe
        return MADE[key]

    return make


def test_what_is_drawn_is_the_pipelines(page_of):
    page, pipe = page_of()
    call = {"num_inference_steps": 4, "guidance_scale": 3.0, "guidance_rescale": 0.2, "negative_prompt": "green"}
    gallery, seed, drawn = Handler(page, "text_to_image")(
        prompt=" a red boot ", count=2, seed=7, new_seed=False, guidance_low=0.1, guidance_high=5, height=6, **call
    )
    generators = [torch.Generator().manual_seed(i) for i in (7, 8)]
    expected = pipe(
        "a red boot", num_images_per_prompt=2, guidance_interval=(0.1, 5), height=6, generator=generators, **call
    ).images
    (unfold, *_) = [fn.fn for fn in page.fns.values() if fn.name == "_unfold"]
    step, noisy, clean, animation, chosen, *_ = unfold(drawn)
    assert seed == 7 and gallery.columns == 2 and chosen == 0 and step.value == 2 and step.maximum == 4
    for (picture, _), wanted in zip(drawn.pictures, expected, strict=True):
        np.testing.assert_array_equal(picture, wanted)
    np.testing.assert_array_equal(noisy, drawing.as_grid(drawn.noisy[1]))
    np.testing.assert_array_equal(clean, drawing.as_grid(drawn.clean[1]))
    assert animation.count("data:image/webp;base64,") == 2 and 'download="drawing.webp"' in animation


def test_the_api_gives_all_pictures_in_one(page_of):
    page, pipe = page_of()
    (fn,) = [fn for fn in page.fns.values() if fn.api_name == "text_to_image"]
    values = Handler(page, "text_to_image").values(prompt="7", count=1, seed=3, new_seed=False, num_inference_steps=2)
    picture = fn.fn(*values, lambda *args, **kwargs: None, None)
    expected = pipe("7", num_inference_steps=2, generator=torch.Generator().manual_seed(3)).images[0]
    np.testing.assert_array_equal(picture, expected)
    assert [type(component) for component in fn.outputs] == [gr.Image]
    usual = {name: parameter.default for name, parameter in fn.fn.__signature__.parameters.items()}
    assert inspect.Parameter.empty not in usual.values() and usual["num_inference_steps"] == 20
    assert "num_inference_steps: Steps" in fn.fn.__doc__


def test_a_new_seed_is_another_and_is_shown(page_of):
    page, _ = page_of()
    seeds = {Handler(page, "text_to_image")(prompt="7", count=1, num_inference_steps=1)[1] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    "config, there, missing",
    [
        ({}, {"prompt", "negative_prompt", "guidance_scale", "height", "width"}, {"class_labels", "attribute_0"}),
        (
            {"cross_attention_dim": None, "transformer_layers_per_block": (0, 0)},
            {"num_inference_steps", "count", "seed", "sampler"},
            {"prompt", "negative_prompt", "guidance_scale", "guidance_low"},
        ),
        ({"attributes": KNOWN}, {"attribute_0", "attribute_1"}, set()),
    ],
)
def test_controls_are_those_that_the_checkpoint_can_follow(page_of, config, there, missing):
    page, _ = page_of(**config)
    found = controls(page, "text_to_image").keys()
    assert found >= there and not found & missing


def test_what_is_said_beside_the_text_is_given_to_the_pipeline(page_of):
    page, pipe = page_of(attributes=KNOWN)
    call = {"count": 1, "seed": 0, "new_seed": False, "num_inference_steps": 2, "prompt": "a"}
    age, label = controls(page, "text_to_image")["attribute_0"], controls(page, "text_to_image")["attribute_1"]
    assert age.label == "Age" and "usually 2 to 4" in age.info
    assert label.label == "Class" and [value for _, value in label.choices] == [UNKNOWN, "cat", "dog"]
    drawn = Handler(page, "text_to_image")(attribute_0=" 4.5", attribute_1="dog", **call)[2]
    with pytest.raises(gr.Error, match="age must be a number, or empty: got &#x27;old&#x27;"):
        Handler(page, "text_to_image")(attribute_0="old", **call)
    nothing = Handler(page, "text_to_image")(**call)[2]
    said = {"class_labels": "dog", "age": 4.5}
    for found, attributes in ((drawn, said), (nothing, None)):
        expected = pipe("a", attributes=attributes, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
        np.testing.assert_array_equal(found.pictures[0][0], expected.images[0])
    assert not np.array_equal(drawn.pictures[0][0], nothing.pictures[0][0])


def test_a_classifier_gives_a_choice_of_classes(page_of):
    torch.manual_seed(0)
    shape = {"block_out_channels": (16,), "layers_per_block": 1, "transformer_layers_per_block": (0,)}
    classifier = MezzotintClassifier(2, {0: "cat", 1: "dog"}, 8, norm_num_groups=4, **shape).eval()
    page, pipe = page_of(classifier=classifier)
    labels = controls(page, "text_to_image")["class_labels"]
    assert labels.choices == [(UNKNOWN, -1), ("cat", 0), ("dog", 1)]
    call = {"prompt": "a", "num_inference_steps": 2}
    drawn = Handler(page, "text_to_image")(class_labels=1, classifier_scale=5, count=1, new_seed=False, **call)[2]
    generator = torch.Generator().manual_seed(0)
    expected = pipe(**call, class_labels="dog", classifier_scale=5, generator=generator).images[0]
    np.testing.assert_array_equal(drawn.pictures[0][0], expected)


def layers_over(left_half_of: Image.Image) -> list[Image.Image]:
    layer = Image.new("RGBA", left_half_of.size)
    layer.paste((255, 255, 255, 255), (0, 0, left_half_of.width // 2, left_half_of.height))
    return [layer]


def test_a_picture_that_is_painted_over_keeps_the_rest(page_of):
    page, _ = page_of()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST)
    given = {"background": large.convert("RGBA"), "layers": layers_over(large), "composite": large}
    drawn = Handler(page, "inpaint")(picture=given, prompt="a", count=1, num_inference_steps=2)[2]
    found = np.asarray(drawn.pictures[0][0])
    np.testing.assert_array_equal(found[:, 4:], pixels[:, 4:])
    assert not np.array_equal(found[:, :4], pixels[:, :4])


def test_a_painted_layout_is_drawn(page_of):
    page, pipe = page_of(in_channels=5, condition={"task": "layout", "num_classes": 2})
    canvas = Image.new("RGBA", (96, 96), "black")
    canvas.paste("white", (0, 0, 48, 96))
    given = {"background": None, "layers": [], "composite": canvas}
    call = {"num_inference_steps": 2, "prompt": "a"}
    drawn = Handler(page, "layout_to_image")(picture=given, count=1, new_seed=False, **call)[2]
    classes = torch.zeros(1, 8, 8, dtype=torch.uint8)
    classes[:, :, :4] = 1
    pipe = MezzotintLayoutPipeline(**pipe.components)
    expected = pipe(mask_image=classes, generator=torch.Generator().manual_seed(0), **call).images[0]
    np.testing.assert_array_equal(drawn.pictures[0][0], expected)


def test_a_small_picture_is_enlarged_from_the_size_that_was_trained_with(page_of):
    page, _ = page_of(in_channels=7, condition={"task": "upscale", "scale": 2})
    drawn = Handler(page, "upscale")(picture=Image.new("RGB", (100, 60), "red"), count=1, num_inference_steps=1)[2]
    assert drawn.pictures[0][0].size == (8, 8)
    call = {"picture": Image.new("RGB", (10, 6), "red"), "keep_size": True}
    drawn = Handler(page, "upscale")(**call, count=1, num_inference_steps=1)[2]
    assert drawn.pictures[0][0].size == (20, 12)


def test_a_picture_is_divided_into_classes(page_of):
    page, _ = page_of(in_channels=5, out_channels=1, condition={"task": "segment", "num_classes": 2})
    drawn = Handler(page, "segment")(picture=RED, count=3, num_inference_steps=1)[2]
    assert [caption.split(":")[0] for _, caption in drawn.pictures] == ["classes", "doubt"]
    (fn,) = [fn for fn in page.fns.values() if fn.api_name == "segment"]
    values = Handler(page, "segment").values(picture=RED, count=1, num_inference_steps=1)
    assert fn.fn(*values, lambda *args, **kwargs: None, None).size == (16, 8)  # side by side


NOTHING = {"background": None, "layers": [], "composite": None}


@pytest.mark.parametrize(
    "name, values, line",
    [
        ("text_to_image", {"count": 0}, "count must be from 1 to 16: got 0"),
        ("text_to_image", {"count": 1000}, "count must be from 1 to 16: got 1000"),
        ("text_to_image", {"num_inference_steps": 10**6}, "num inference steps must be from 1 to 100: got 1000000"),
        ("text_to_image", {"height": None}, "height must be a number: got nothing"),
        ("text_to_image", {"seed": None}, "seed must be a number: got nothing"),
        (
            "text_to_image",
            {"guidance_low": 3, "guidance_high": 1},
            "guidance_interval must be two noise levels, 0 &lt;= low &lt; high: got (3, 1)",
        ),
        ("text_to_image", {"guidance_rescale": 7}, "guidance_rescale must be a finite number in [0, 1]: got 7"),
        ("image_to_image", {"picture": None}, "a picture must be dropped in: got none"),
        (
            "image_to_image",
            {"picture": Image.new("RGB", (600, 600)), "keep_size": True},
            "a picture must have at most 512x512 pixels to keep its size: got 600x600",
        ),
        ("inpaint", {"picture": None}, "a picture must be dropped in, and a part of it painted over: got none"),
        ("inpaint", {"picture": NOTHING}, "a picture must be dropped in, and a part of it painted over: got none"),
        (
            "inpaint",
            {"picture": {"background": RED.convert("RGBA"), "layers": [], "composite": RED}},
            "something must be painted over, to be drawn anew: nothing is, or less than a pixel",
        ),
        (
            "inpaint",
            {"picture": {"background": RED.convert("RGBA"), "layers": layers_over(RED)}, "strength": 0},
            "strength must be a",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_line_of_ours(page_of, name, values, line):
    page, _ = page_of()
    with pytest.raises(gr.Error) as error:
        Handler(page, name)(**{"new_seed": False, "prompt": "a"} | values)
    assert error.value.message.startswith(line) and error.value.title == "Not drawn"
    assert not error.value.print_exception


def test_what_a_visitor_wrote_is_no_markup_in_a_line(page_of):
    page, _ = page_of(attributes=KNOWN)
    with pytest.raises(gr.Error, match="&lt;b&gt;"):
        Handler(page, "text_to_image")(attribute_1="<b>", prompt="a")


def test_a_mistake_of_the_program_is_in_its_log_and_not_on_the_page(page_of, monkeypatch, capsys):
    page, _ = page_of()
    monkeypatch.setattr("mezzotint.demo.page.draw", lambda *args, **kwargs: {}["secret"])
    with pytest.raises(gr.Error) as error:
        Handler(page, "text_to_image")(prompt="a")
    assert error.value.message == "this was a mistake of the program, which its log tells of (KeyError)"
    assert "KeyError: 'secret'" in capsys.readouterr().err


def test_a_file_that_is_no_picture_is_refused_in_our_words(page_of, tmp_path):
    page, _ = page_of()
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    payload = gr.data_classes.ImageData(path=str(tmp_path / "no.png"), orig_name="no.png")
    for name in ("image_to_image", "inpaint"):
        picture = controls(page, name)["picture"]
        given = payload
        if name == "inpaint":
            file = gr.FileData(path=payload.path, orig_name="no.png")
            given = picture.data_model(background=file, layers=[], composite=file)
        with pytest.raises(gr.Error) as error:
            picture.preprocess(given)
        assert error.value.message == "the file must be a picture that can be opened: got another"


def test_leafing_shows_the_states_of_a_step(page_of):
    page, _ = page_of()
    drawn = Handler(page, "text_to_image")(prompt="a", count=2, num_inference_steps=3, new_seed=False)[2]
    (leaf, *_) = [fn.fn for fn in page.fns.values() if fn.name == "_leaf"]
    for step in (1, 2, 3):
        noisy, clean, slider = leaf(drawn, step)
        np.testing.assert_array_equal(noisy, drawing.as_grid(drawn.noisy[step - 1]))
        np.testing.assert_array_equal(clean, drawing.as_grid(drawn.clean[step - 1]))
        assert f"step {step} of 3, from t = {drawn.timesteps[step - 1]:.4g} on" in slider["label"]
    assert leaf(None, 1)[:2] == (None, None)


def test_the_forward_process_is_the_schedulers_with_its_curves(page_of):
    page, pipe = page_of()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    found, said, shares, ratio = Handler(page, "forward_process").fn.fn(picture, 300, 4)
    np.testing.assert_array_equal(found, noised(pipe, picture, 300, 4))
    a = pipe.scheduler.alphas_cumprod[300].item()
    assert f"**{a**0.5:.3f}** x_0 + **{(1 - a) ** 0.5:.3f}** noise" in said
    assert set(shares["curve"]) == {"signal α", "noise σ", "t"} and set(shares[shares["curve"] == "t"]["t"]) == {300}
    at_0 = shares[(shares["t"] == 0) & (shares["curve"] == "signal α")]["share"].item()
    np.testing.assert_allclose(at_0, pipe.scheduler.alphas_cumprod[0] ** 0.5, rtol=1e-4)
    assert ratio[ratio["curve"] == "log SNR"]["log SNR"].is_monotonic_decreasing
    assert Handler(page, "forward_process").fn.fn(None, 300, 4)[0] is None


def test_prompts_steps_and_guidance_are_offered_as_the_recipe_has_them(make_pipe, tmp_path):
    pipe = make_pipe()
    (tmp_path / "recipe.yaml").write_text(
        "validation_prompts: [a red boot, 7, a green hat]\nnum_inference_steps: 9\nguidance_scale: 3.5\n"
    )
    about = Checkpoint.of(pipe, str(tmp_path), "tiny")
    assert about.prompts == ("a red boot", "a green hat")
    assert about.defaults == {"num_inference_steps": 9, "guidance_scale": 3.5}
    found = controls(make_page(about), "text_to_image")
    assert found["prompt"].value == "a red boot" and found["guidance_scale"].value == 3.5
    for odd in ("[", "7", "validation_prompts: 3\nnum_inference_steps: x\nguidance_scale: .nan", None):
        (tmp_path / "recipe.yaml").unlink() if odd is None else (tmp_path / "recipe.yaml").write_text(odd)
        about = Checkpoint.of(pipe, str(tmp_path), "tiny")
        assert (about.prompts, about.defaults) == ((), {})


def test_making_and_serving_a_page_asks_no_other_machine(page_of, monkeypatch):
    asked, resolve = [], socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        asked.append(host)
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    page, _ = page_of()
    try:
        _, address, public = launch(page, prevent_thread_lock=True, quiet=True)
        assert address.startswith("http://127.0.0.1:") and public is None
    finally:
        page.close(verbose=False)
    assert {str(host) for host in asked} <= {"127.0.0.1", "localhost"}
    assert page.analytics_enabled is False


def test_a_pipeline_of_the_page_is_never_changed(page_of):
    page, pipe = page_of()
    scheduler, call = pipe.scheduler, {"prompt": "a", "count": 1, "num_inference_steps": 2, "new_seed": False}
    own, other, again = (
        Handler(page, "text_to_image")(sampler=sampler, **call)[2].pictures[0][0]
        for sampler in ("MezzotintScheduler", "EulerAncestralDiscreteScheduler", "MezzotintScheduler")
    )
    assert pipe.scheduler is scheduler
    np.testing.assert_array_equal(own, again)
    assert not np.array_equal(own, other)


# ----------------------------------------------------------------------------- sounds, videos, solids and molecules

OTHERS = {
    "text_to_sound": tiny_pipes.sound,
    "text_to_video": tiny_pipes.video,
    "text_to_solid": tiny_pipes.solid,
    "text_to_molecule": functools.partial(tiny_pipes.molecules, attributes={"logP": [2.0, 1.0]}),
}


@pytest.fixture
def other(make_pipe):
    """`other(name)`: the page of a tiny pipeline of another modality by its tab's name, and the pipeline."""

    def make(name: str):
        if name not in MADE:
            text = make_pipe()
            pipe = OTHERS[name](text=(text.text_encoder, text.tokenizer), cross_attention_dim=16)
            MADE[name] = make_page(Checkpoint(pipe, "tiny")), pipe
        return MADE[name]

    return make


def drawn_by(pipe, seeds: list[int], **call) -> list:
    """The samples of a call of a pipeline by hand."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return list(pipe(**call, **{pipe.per_prompt: len(seeds)}, generator=generators, return_dict=False)[0])


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_drawn_is_the_pipelines_whatever_the_modality(other, name):
    page, pipe = other(name)
    assert [fn.api_name for fn in page.fns.values() if fn.api_visibility == "public"] == [name]
    call = {"num_inference_steps": 3, "guidance_scale": 3.0, "negative_prompt": "green"}
    gallery, seed, drawn, *more = Handler(page, name)(prompt=" a ", count=2, seed=7, new_seed=False, **call)
    expected = drawn_by(pipe, [7, 8], prompt="a", **call)
    assert seed == 7 and len(drawn.samples) == 2 and [caption for _, caption in drawn.pictures] == ["seed 7", "seed 8"]
    for found, wanted in zip(drawn.samples, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    kind, about = samples.of(pipe.modality), pipe.unet.config.modality
    for (picture, _), wanted in zip(drawn.pictures, expected, strict=True):
        np.testing.assert_array_equal(picture, kind.show(wanted, about, pipe.default_size))
    assert len(drawn.timesteps) == len(drawn.noisy) == len(drawn.clean) == 3
    if name in ("text_to_video", "text_to_solid"):
        for states, (picture, _) in zip(drawn.noisy[-1], drawn.pictures, strict=True):
            np.testing.assert_array_equal(states, picture)
    (unfold, *_) = [fn.fn for fn in page.fns.values() if fn.name == "_unfold"]
    assert unfold(drawn)[3].count("data:image/webp;base64,") == 2

    (asked,) = [fn for fn in page.fns.values() if fn.api_name == name]
    values = Handler(page, name).values(prompt="a", count=2, seed=7, new_seed=False, **call)
    found = asked.fn(*values, lambda *args, **kwargs: None, None)
    if name == "text_to_molecule":
        assert found == "\n".join(expected) == more[0].value
    else:
        contents = [kind.encoded(wanted, kind.ENDINGS[0], about) for wanted in expected]
        assert [Path(path).read_bytes() for path in found] == contents


def test_each_sound_has_a_player_of_its_own(other):
    page, _ = other("text_to_sound")
    call = {"count": 3, "num_inference_steps": 2, "audio_length_in_s": 0.3, "seed": 1, "new_seed": False}
    _, _, drawn, *players = Handler(page, "text_to_sound")(**call)
    assert [player.visible for player in players] == [True] * 3 + [False] * 13
    for sound, player in zip(drawn.samples, players, strict=False):
        with wave.open(player.value["path"]) as written:
            assert written.getframerate() == tiny_pipes.RATE and written.getnframes() == 30
            found = np.frombuffer(written.readframes(30), "<i2")
        np.testing.assert_allclose(found / 32768, sound[0], atol=1 / 32768)
    assert [player.label for player in players[:3]] == ["seed 1", "seed 2", "seed 3"]


def test_a_video_is_shown_moving_and_begins_with_the_frame_that_is_given(other):
    page, pipe = other("text_to_video")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 10, 3), dtype=np.uint8)
    large = Image.fromarray(pixels).resize((100, 90), Image.Resampling.NEAREST)
    call = {"count": 1, "num_inference_steps": 2, "num_frames": 4, "height": 9, "width": 10, "new_seed": False}
    gallery, _, drawn = Handler(page, "text_to_video")(picture=large, **call)
    (frames,) = drawn.samples
    assert len(frames) == 4
    np.testing.assert_array_equal(frames[0], pixels)
    np.testing.assert_array_equal(drawn.noisy[-1][0], drawn.pictures[0][0])  # though 9x10 is drawn larger, and cropped
    with Image.open(gallery.value[0]["image"]["path"]) as moving:
        assert moving.format == "WEBP" and moving.n_frames == 4
        for i, frame in enumerate(frames):
            moving.seek(i)
            np.testing.assert_array_equal(moving.convert("RGB"), frame)
            assert moving.info["duration"] == 125
    controls_there = controls(page, "text_to_video")
    assert "keep_size" not in controls_there and "strength" not in controls_there


def test_a_chosen_solid_can_be_turned_where_there_is_trimesh(other, monkeypatch):
    trimesh = pytest.importorskip("trimesh")
    page, pipe = other("text_to_solid")
    drawn, mesh, files = Handler(page, "text_to_solid")(count=2, num_inference_steps=2)[2:]
    (turned,) = [fn.fn for fn in page.fns.values() if fn.name == "turned"]
    for number, path in enumerate((mesh, turned(drawn, 1))):
        found = trimesh.load(io.BytesIO(Path(path).read_bytes()), file_type="glb", force="mesh")
        assert found.volume == pytest.approx(drawn.samples[number][..., -1].sum())
    assert len(files.value) == 2
    monkeypatch.setitem(sys.modules, "trimesh", None)
    monkeypatch.setattr("mezzotint.demo.results.importlib.util.find_spec", lambda name: None)
    with gr.Blocks():
        plain = Results(pipe, "text_to_solid", 16)
    assert plain.more == [plain.files] and len(plain.shown(drawn)) == 2


def test_a_molecule_has_the_numbers_and_the_beginning_that_are_asked_for(other):
    page, pipe = other("text_to_molecule")
    assert controls(page, "text_to_molecule")["attribute_0"].label == "LogP"
    call = {"num_inference_steps": 3, "fragment": "[O][C]"}
    said = {"attribute_0": "3.5", "count": 2, "seed": 4, "new_seed": False}
    _, _, drawn, strings = Handler(page, "text_to_molecule")(**call | said | {"fragment": " [O][C]\n"})
    assert drawn.samples == drawn_by(pipe, [4, 5], prompt="", attributes={"logP": 3.5}, **call)
    assert all(one.startswith("[O][C]") for one in drawn.samples) and strings.value.split("\n") == drawn.samples


@pytest.mark.parametrize(
    "name, values, line",
    [
        ("text_to_sound", {"count": 17}, "count must be from 1 to 16: got 17"),
        ("text_to_sound", {"audio_length_in_s": -1}, "audio_length_in_s must be a number of seconds above 0: got -1"),
        ("text_to_video", {"num_frames": None}, "num frames must be a number: got nothing"),
        ("text_to_video", {"num_frames": 0}, "num_frames must be a positive whole number: got 0"),
        ("text_to_solid", {"guidance_rescale": 7}, "guidance_rescale must be a finite number in [0, 1]: got 7"),
        (
            "text_to_molecule",
            {"fragment": "CC"},
            "fragment must be tokens that the network knows, in selfies: got &#x27;CC&#x27;",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_line_whatever_the_modality(other, name, values, line):
    page, _ = other(name)
    with pytest.raises(gr.Error) as error:
        Handler(page, name)(**{"new_seed": False, "prompt": "a"} | values)
    assert error.value.message == line and not error.value.print_exception
