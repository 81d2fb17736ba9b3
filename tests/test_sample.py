"""The sampling program against the pipeline called by hand."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint import (
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintLayoutPipeline,
    MezzotintPipeline,
    MezzotintSegmentPipeline,
    MezzotintUpscalePipeline,
)
from mezzotint_training import cli


@pytest.fixture
def folder(save_pipe, tmp_path, capsys):
    save_pipe(tmp_path / "tiny")
    capsys.readouterr()
    return tmp_path / "tiny"


def sample(*argv) -> int:
    return cli.main(["sample", *map(str, argv), "--device", "cpu"])


def test_a_picture_is_the_pipelines(folder, tmp_path, capsys):
    argv = ["--output", tmp_path / "boot.png", "--num_inference_steps", 3, "--guidance_scale", 1.5, "--seed", 4]
    assert sample(folder, "a red boot", *argv, "--negative_prompt", "green") == 0
    assert capsys.readouterr().out == f"1 picture of 8x8: {tmp_path / 'boot.png'}\n"
    pipe = MezzotintPipeline.from_pretrained(folder)
    settings = {"num_inference_steps": 3, "guidance_scale": 1.5, "negative_prompt": "green"}
    expected = pipe("a red boot", generator=[torch.Generator().manual_seed(4)], **settings).images[0]
    np.testing.assert_array_equal(Image.open(tmp_path / "boot.png"), expected)
    other = pipe("a red boot", generator=torch.Generator().manual_seed(5), **settings).images[0]
    assert not np.array_equal(other, expected)


def test_no_weight_of_guidance_is_what_was_asked_for(folder, tmp_path):
    path, call = tmp_path / "drawn.png", {"num_inference_steps": 3}
    assert sample(folder, "a red boot", "--output", path, "--num_inference_steps", 3, "--guidance_scale", 0) == 0
    pipe = MezzotintPipeline.from_pretrained(folder)
    zero, two = (
        pipe("a red boot", guidance_scale=scale, generator=[torch.Generator().manual_seed(0)], **call).images[0]
        for scale in (0.0, 2.0)
    )
    np.testing.assert_array_equal(Image.open(path), zero)
    assert not np.array_equal(zero, two)


def test_prompts_are_rows_and_their_pictures_columns(folder, tmp_path, capsys):
    size = ["--height", 12, "--width", 10, "--num_inference_steps", 2, "--num_images_per_prompt", 3]
    assert sample(folder, "a red boot", "7", *size, "--output", tmp_path / "grid.png") == 0
    assert "6 pictures of 10x12" in capsys.readouterr().out
    pipe = MezzotintPipeline.from_pretrained(folder)
    settings = {"height": 12, "width": 10, "num_inference_steps": 2, "num_images_per_prompt": 3}
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    expected = pipe(["a red boot", "7"], generator=generators, **settings).images
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (24, 30, 3)
    for i, picture in enumerate(expected):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(grid[12 * row : 12 * row + 12, 10 * column : 10 * column + 10], picture)


def test_seeds_are_shared_by_all_prompts(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("7\n\n  \na blue cat\n")
    argv = ["--prompts_file", tmp_path / "prompts.txt", "--num_inference_steps", 2, "--output", tmp_path / "grid.png"]
    assert sample(*argv, "--num_images_per_prompt", 2, "--seed", 5, 3, "--device", "cpu", folder, "a red boot") == 0
    pipe = MezzotintPipeline.from_pretrained(folder)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 3, 4) * 3]
    call = {"num_inference_steps": 2, "num_images_per_prompt": 4, "output_type": "np"}
    expected = pipe(["a red boot", "7", "a blue cat"], generator=generators, **call).images
    expected = np.rint(255 * expected).reshape(3, 4, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(24, 32, 3)
    np.testing.assert_array_equal(Image.open(tmp_path / "grid.png"), expected)


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "DDIMScheduler"])
def test_a_sampler_of_diffusers_is_taken_by_its_name(folder, tmp_path, name):
    argv = ["--sampler", name, "--num_inference_steps", 3, "--output", tmp_path / "drawn.png"]
    assert sample(folder, "a red boot", *argv) == 0
    pipe = MezzotintPipeline.from_pretrained(folder)
    own = pipe("a red boot", num_inference_steps=3, generator=[torch.Generator().manual_seed(0)]).images[0]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    expected = pipe("a red boot", num_inference_steps=3, generator=[torch.Generator().manual_seed(0)]).images[0]
    np.testing.assert_array_equal(Image.open(tmp_path / "drawn.png"), expected)
    assert not np.array_equal(own, expected)


def test_an_animation_shows_the_steps(folder, tmp_path):
    argv = ["--num_inference_steps", 3, "--num_images_per_prompt", 2, "--output", tmp_path / "drawn.png"]
    assert sample(folder, "a red boot", *argv, "--animation", tmp_path / "steps.webp") == 0
    with Image.open(tmp_path / "steps.webp") as moving:
        assert moving.n_frames == 3
        moving.seek(2)
        last = np.asarray(moving.convert("RGB"))
    enlarged = Image.open(tmp_path / "drawn.png").resize((256, 128), Image.Resampling.NEAREST)
    for left in (4, 268):  # x_t after the last step, and the x_0 that is predicted at it
        np.testing.assert_allclose(last[4:132, left : left + 256], np.asarray(enlarged), atol=1)


def test_an_animation_of_no_steps_is_none_and_the_picture_is_there(folder, tmp_path, capsys):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "start.png")
    argv = ["--image", tmp_path / "start.png", "--strength", 0, "--output", tmp_path / "drawn.png"]
    assert sample(folder, "a red boot", *argv, "--animation", tmp_path / "steps.webp") == 2
    said = f"mezzotint: an animation needs a step at least: got none; {tmp_path / 'drawn.png'} has the picture\n"
    assert capsys.readouterr().err.endswith(said) and not (tmp_path / "steps.webp").exists()
    assert Image.open(tmp_path / "drawn.png").size == (8, 8)


def test_a_picture_tells_how_to_draw_it_again(folder, tmp_path, capsys):
    first, again, start = tmp_path / "first.png", tmp_path / "again.png", tmp_path / "start.png"
    Image.effect_noise((8, 8), 90).convert("RGB").save(start)
    argv = ["--image", start, "--seed", 3, 9, "--negative_prompt=-é", "--guidance_interval", 0.5, 4]
    argv += ["--sampler", "DDIMScheduler"]
    assert sample(folder, "a red boot", *argv, "--num_inference_steps", 4, "--output", first) == 0
    assert sample("--from", first, "--output", again) == 0
    np.testing.assert_array_equal(Image.open(first), Image.open(again))
    assert Image.open(first).text == Image.open(again).text  # which can be drawn from in turn
    assert sample("--from", again, folder, "7", "--seed", 3, "--output", again) == 0
    assert sample(folder, "7", *argv, "--seed", 3, "--num_inference_steps", 4, "--output", first) == 0
    np.testing.assert_array_equal(Image.open(first), Image.open(again))
    Image.effect_noise((8, 8), 90).convert("RGB").save(start)
    capsys.readouterr()
    assert sample("--from", first, "--output", again) == 2
    assert capsys.readouterr().err == (
        f"mezzotint: from {first} cannot be loaded: the image {start} has changed since\n"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"checkpoint": "x", "prompt": ["a"], "output": "/etc/x.png"}, "it tells output, which is not of a picture"),
        ({"checkpoint": "x", "prompt": ["a"], "seed": [-1]}, "seed must be at least 0: got -1"),
        ({"checkpoint": "x", "prompt": ["a"], "seeds": [1]}, "unknown flag --seeds"),
        ({"checkpoint": " ", "prompt": ["a"]}, "must not be empty"),
        ({"prompt": ["a"]}, "checkpoint"),
        ([], "cannot be loaded"),
        (None, "it does not tell how it was drawn, as a PNG of mezzotint sample does"),
    ],
)
def test_a_picture_that_tells_something_else_is_refused_in_one_line(tmp_path, capsys, arguments, words):
    about = PngInfo()
    if arguments is not None:
        about.add_text("mezzotint", json.dumps({"arguments": arguments, "sha256": {}}))
    Image.new("L", (8, 8)).save(tmp_path / "told.png", pnginfo=about)
    assert sample("--from", tmp_path / "told.png") == 2
    err = capsys.readouterr().err
    assert err.startswith("mezzotint: ") and err.count("\n") == 1 and words in err, err


def test_a_picture_is_changed_and_a_part_of_one_drawn(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    mask = np.zeros((10, 12), dtype=np.uint8)
    mask[:, 5:] = 255
    for name, some in (("picture", pixels), ("mask", mask)):
        Image.fromarray(some).save(tmp_path / f"{name}.png")
    pipe = MezzotintPipeline.from_pretrained(folder)
    common = ["--num_inference_steps", 4, "--image", tmp_path / "picture.png", "--num_images_per_prompt", 2]
    settings = {"num_inference_steps": 4, "image": Image.fromarray(pixels), "num_images_per_prompt": 2}
    for cls, argv, more in (
        (MezzotintImg2ImgPipeline, [], {}),
        (MezzotintImg2ImgPipeline, ["--strength", 0.5], {"strength": 0.5}),
        (MezzotintInpaintPipeline, ["--mask", tmp_path / "mask.png"], {"mask_image": Image.fromarray(mask)}),
        (
            MezzotintInpaintPipeline,
            ["--mask", tmp_path / "mask.png", "--num_resamples", 2],
            {"mask_image": Image.fromarray(mask), "num_resamples": 2},
        ),
    ):
        assert sample(folder, "a red boot", *common, *argv, "--output", tmp_path / "drawn.png") == 0
        drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        expected = cls.from_pipe(pipe)("a red boot", generator=generators, **settings, **more).images
        np.testing.assert_array_equal(drawn, np.concatenate([np.asarray(x) for x in expected], axis=1))
        if "mask_image" in more:
            np.testing.assert_array_equal(drawn[:, :5], pixels[:, :5])


@pytest.fixture(scope="module")
def task_folders(make_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    upscale = make_pipe(in_channels=7, condition={"task": "upscale", "scale": 2})
    segment = make_pipe(in_channels=5, out_channels=1, condition={"task": "segment", "num_classes": 2})
    upscale.save_pretrained(folder / "upscale"), segment.save_pretrained(folder / "segment")
    make_pipe(in_channels=5, condition={"task": "layout", "num_classes": 2}).save_pretrained(folder / "layout")
    make_pipe(in_channels=7, condition={"task": "inpaint"}).save_pretrained(folder / "inpaint")
    make_pipe(attributes={"class_labels": ["cat", "dog"], "age": [3.0, 1.0]}).save_pretrained(folder / "attributes")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)).save(folder / "small.png")
    return folder


def test_a_picture_is_enlarged_and_divided_into_classes(task_folders, tmp_path, capsys):
    picture, path = Image.open(task_folders / "small.png"), tmp_path / "drawn.png"
    common = ["--image", task_folders / "small.png", "--num_inference_steps", 2, "--output", path]
    assert sample(task_folders / "upscale", *common, "--scale", 2, "--noise_level", 0.2) == 0
    assert capsys.readouterr().out == f"1 picture of 14x12: {path}\n"
    pipe = MezzotintUpscalePipeline.from_pretrained(task_folders / "upscale")
    expected = pipe(image=picture, noise_level=0.2, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(Image.open(path), expected.images[0])
    assert sample(task_folders / "segment", *common, "--num_images_per_prompt", 3) == 0
    pipe = MezzotintSegmentPipeline.from_pretrained(task_folders / "segment")
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    expected = pipe(image=picture, num_inference_steps=2, ensemble_size=3, generator=generators).prediction[0]
    np.testing.assert_array_equal(Image.open(path), expected)
    assert Image.open(path).getpalette()[:6] == [0, 0, 0, 255, 255, 255]


def test_classes_that_were_drawn_are_a_layout_to_draw_by(task_folders, tmp_path, recwarn):
    common = ["--num_inference_steps", 2, "--output"]
    argv = ["--image", task_folders / "small.png", *common, tmp_path / "classes.png"]
    assert sample(task_folders / "segment", *argv) == 0
    argv = ["a", "--mask", tmp_path / "classes.png", *common, tmp_path / "drawn.png"]
    assert sample(task_folders / "layout", *argv) == 0
    classes = Image.open(tmp_path / "classes.png")
    pipe = MezzotintLayoutPipeline.from_pretrained(task_folders / "layout")
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    expected = pipe("a", mask_image=torch.from_numpy(np.array(classes))[None], **call).images[0]
    np.testing.assert_array_equal(Image.open(tmp_path / "drawn.png"), expected)
    assert sample(task_folders / "segment", "--image", task_folders / "small.png", *common, tmp_path / "c.jpg") == 0
    assert sample("--from", tmp_path / "classes.png", "--output", tmp_path / "again.png") == 0  # it tells no prompt
    np.testing.assert_array_equal(Image.open(tmp_path / "again.png"), classes)
    assert not [warning for warning in recwarn if "prompt" in str(warning.message)]


@pytest.mark.parametrize("task", ["inpaint", "layout"])
def test_weights_that_read_a_mask_start_from_a_picture_alone_too(task_folders, tmp_path, task):
    common = ["--image", task_folders / "small.png", "--strength", 0.5, "--num_inference_steps", 2]
    assert sample(task_folders / task, "a", *common, "--output", tmp_path / "drawn.png") == 0
    pipe = MezzotintImg2ImgPipeline(**MezzotintPipeline.from_pretrained(task_folders / task).components)
    call = {"strength": 0.5, "num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    expected = pipe("a", image=Image.open(task_folders / "small.png"), **call).images[0]
    np.testing.assert_array_equal(Image.open(tmp_path / "drawn.png"), expected)


def test_what_is_said_beside_the_text(task_folders, tmp_path):
    path = tmp_path / "drawn.png"
    common = ["--num_inference_steps", 2, "--output", path]
    said = ["--attributes", "class_labels=dog", "age=4.5"]
    assert sample(task_folders / "attributes", "a", *common, *said) == 0
    pipe = MezzotintPipeline.from_pretrained(task_folders / "attributes")
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    expected = pipe("a", class_labels="dog", attributes={"age": 4.5}, **call).images[0]
    np.testing.assert_array_equal(Image.open(path), expected)


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["upscale", "--image", "{tmp}/small.png", "--scale", "4"],
            "scale must be 2, which the weights are trained for",
        ),
        (
            ["upscale", "--image", "{tmp}/small.png", "--strength", "0.5"],
            "strength is not for MezzotintUpscalePipeline",
        ),
        (["attributes", "a", "--mask", "{tmp}/small.png"], "mask goes with --image: got it alone"),
        (["segment", "a"], "got some for segment, which MezzotintSegmentPipeline takes"),
        (["segment"], "prompt must be given, one text or more: got none"),
        (["upscale", "--scale", "2"], "scale goes with --image: got it alone"),
        (["attributes", "a", "--attributes", "age"], "attributes must be name=value: got 'age'"),
        (["attributes", "a", "--attributes", "age=x"], "attributes must be numbers where the network reads numbers"),
        (["attributes", "a", "--attributes", "ages=3"], "attributes must be among ['age', 'class_labels']"),
        (["attributes", "a", "--attributes", "class_labels=cow"], "class_labels must be one of"),
    ],
)
def test_what_weights_cannot_do_is_said_in_one_line(task_folders, capsys, argv, words):
    name, *rest = (x.format(tmp=task_folders) for x in argv)
    assert sample(task_folders / name, *rest) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "argv, words",
    [
        (["{tmp}/tiny", "a", "--strength", "0.5"], "strength goes with --image or --audio or --video or --molecule"),
        (["{tmp}/tiny", "a", "--image", "{tmp}/none.png"], "image {tmp}/none.png"),
        (["{tmp}/tiny", "a", "--image", "{tmp}/tiny/model_index.json"], "image {tmp}/tiny/model_index.json"),
        (["{tmp}/tiny", "a", "--image", "x", "--height", "8"], "leave one of --height and --image out"),
        (["{tmp}/tiny", "a", "--image", "x", "--strength", "1.5"], "strength must be in [0, 1]: got 1.5"),
        (["{tmp}/tiny", "a", "--image", "{tmp}/moving.gif"], "it has several frames: give one of them"),
        (["{tmp}/tiny", "a", "--sampler", "DIMScheduler"], "got 'DIMScheduler'; did you mean DDIMScheduler?"),
        (["{tmp}/tiny", "--prompts_file", "{tmp}/none.txt"], "prompts_file {tmp}/none.txt cannot be loaded"),
        (["{tmp}/tiny", "--prompts_file", "{tmp}/moving.gif"], "prompts_file {tmp}/moving.gif cannot be loaded"),
        (["--from", "{tmp}/none.png"], "from {tmp}/none.png cannot be loaded"),
        (["--from", "{tmp}/moving.gif"], "it does not tell how it was drawn"),
        (["{tmp}/none/at/all", "a"], "{tmp}/none/at/all"),
        (["{tmp}", "a"], "model_index.json"),
        (["{tmp}/tiny", "a", "--num_inference_steps", "1001"], "num_inference_steps must be in [1, 1000]: got 1001"),
        (["{tmp}/tiny", "a", "--guidance_interval", "2", "1"], "guidance_interval must be two noise levels"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(folder, tmp_path, capsys, argv, words):
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    before = sorted(tmp_path.rglob("*"))
    assert sample(*(x.format(tmp=tmp_path) for x in argv)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("mezzotint: ") and words.format(tmp=tmp_path) in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--height", "0"], "height must be at least 1: got 0"),
        (["--width", "-8"], "width must be at least 1: got -8"),
        (["--height", "1000000"], "height must be at most 8,192: got 1000000"),
        (["--height", "8.5"], "height must be of type int: got '8.5'"),
        (["--num_inference_steps", "0"], "num_inference_steps must be at least 1: got 0"),
        (["--num_images_per_prompt", "0"], "num_images_per_prompt must be at least 1: got 0"),
        (["--num_images_per_prompt", "1000000000"], "num_images_per_prompt must be at most 1,000: got 1000000000"),
        (["--seed", str(2**64)], f"seed must be below 2^63: got {2**64}"),
        (["--guidance_scale", "-1"], "guidance_scale must be a number from 0: got -1"),
        (["--guidance_scale", "1e12"], "guidance_scale must be at most 1,000: got 1000000000000.0"),
        (["--guidance_scale", "nan"], "guidance_scale must be a number from 0: got nan"),
        (["--guidance_scale", "inf"], "guidance_scale must be a number from 0: got inf"),
        (["--guidance_interval", "nan", "1"], "guidance_interval must be at least 0: got nan"),
        (["--output", "{tmp}/none/x.png"], "output must be in a folder that is there: got {tmp}/none/x.png"),
        (["--output", "{tmp}/tiny/x.png/y.png"], "output must be in a folder that is there: got "),
        (["--output", "{tmp}"], "output must be a file: got the folder {tmp}"),
        (["--output", "{tmp}/x.doc"], "output must end in one of .png, .jpg, "),
        (["--output", "{tmp}/x"], "output must end in one of .png, .jpg, "),
        (["--output", ""], "output must be a file: got the folder ."),
        (["--animation", "{tmp}/x.mp4"], "animation must end in one of .webp, .gif, .png: got {tmp}/x.mp4"),
        (["--device", "quantum"], "device must be one of this machine's (cpu"),
        (["--device", "cuda:99"], "device must be one of this machine's (cpu"),
        (["--device", "meta"], "device must be one of this machine's (cpu"),
        (["--device", ""], "device must be one of this machine's (cpu"),
    ],
)
def test_nothing_is_loaded_for_arguments_that_are_wrong(folder, tmp_path, capsys, monkeypatch, argv, words):
    monkeypatch.setattr(MezzotintPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    assert cli.main(["sample", str(folder), "a", "--device", "cpu", *(x.format(tmp=tmp_path) for x in argv)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mezzotint: {words.format(tmp=tmp_path)}") and err.count("\n") == 1, err


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
@pytest.mark.parametrize("damage", [lambda x: b"", lambda x: x[: len(x) // 2], lambda x: b"garbage" * 99])
def test_damaged_weights_are_one_line(folder, capsys, name, damage):
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert sample(folder, "a") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mezzotint: checkpoint {folder} cannot be loaded: ") and err.count("\n") == 1, err


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "text_encoder/config.json"])
@pytest.mark.parametrize("text", ["[]", "null", "{}", "[" * 50_000, "{", '{"a": 1e999}', ""])
def test_damaged_configurations_are_one_line(folder, capsys, name, text):
    (folder / name).write_text(text)
    assert sample(folder, "a") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mezzotint: checkpoint {folder} cannot be loaded: ") and err.count("\n") == 1, err


def test_a_picture_that_cannot_be_encoded_leaves_the_one_that_was_there(folder, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"another picture")
    monkeypatch.setattr(
        Image.Image, "save", lambda self, file, kind, **about: (_ for _ in ()).throw(OSError("no encoder"))
    )
    assert sample(folder, "a", "--num_inference_steps", 1, "--output", tmp_path / "x.png") == 3
    assert (tmp_path / "x.png").read_bytes() == b"another picture"


def test_a_picture_beyond_the_memory_is_one_line(folder, tmp_path, capsys, monkeypatch):
    def call(self, *args, **kwargs):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(MezzotintPipeline, "__call__", call)
    assert sample(folder, "a", "--output", tmp_path / "x.png") == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mezzotint: the memory is full: ") and not (tmp_path / "x.png").exists()


def test_a_long_prompt_is_drawn(folder, tmp_path, capsys):
    assert sample(folder, "x" * 10**5, "--num_inference_steps", 1, "--output", tmp_path / "x.jpg") == 0
    assert capsys.readouterr().out == f"1 picture of 8x8: {tmp_path / 'x.jpg'}\n"
    assert Image.open(tmp_path / "x.jpg").format == "JPEG"
