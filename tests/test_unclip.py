"""The three programs of unCLIP and what they make: each stopped run ends as one that was not; the finished pipeline
draws what stock parts and closed forms say; what does not fit is refused in one line."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, PriorTransformer
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import UNET, called, distance, logged, saved
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer, CLIPImageProcessor, CLIPModel
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from mezzotint import MezzotintPriorPipeline, MezzotintScheduler, MezzotintVariationPipeline
from mezzotint.drawing import tasks_of
from mezzotint.pipelines.embeddings_mezzotint import MezzotintPriorNetwork, embed_pictures, slerp
from mezzotint_training import cli, train, train_prior, train_two_towers
from mezzotint_training.config.prior import PriorConfig
from mezzotint_training.config.recipe import place, recipes
from mezzotint_training.config.towers import TwoTowersConfig
from mezzotint_training.learning.contrastive import contrastive_loss
from mezzotint_training.learning.objective import denoising_loss
from mezzotint_training.networks.towers import load_towers

LONG = {
    "max_train_samples": 40, "num_validation_samples": 8, "train_batch_size": 4, "gradient_accumulation_steps": 2,
    "max_train_steps": 6, "checkpointing_steps": 2, "checkpoints_total_limit": "null", "logging_steps": 3,
    "validation_steps": 3, "lr_warmup_steps": 2, "report_to": "none",
}  # fmt: skip
TOWER = "{hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
DRAWN = {"load_back": False, "num_inference_steps": 2, "num_validation_images": 1}
OF: dict[str, tuple[ModuleType, dict]] = {
    "towers": (train_two_towers, {"recipe": "digits", "text_tower": TOWER, "vision_tower": TOWER, "projection_dim": 6}),
    "decoder": (train, {"recipe": "digits-unclip", "unet": json.dumps(UNET), "posthoc_ema_steps": 1, **DRAWN}),
    "prior": (train_prior, {
        "recipe": "digits", "prior": "{num_layers: 1, attention_head_dim: 8}", "prior_num_inference_steps": 3, **DRAWN,
    }),
}  # fmt: skip


def run(kind: str, folder: Path, **settings):
    program, own = OF[kind]
    flags = []
    for name, value in (LONG | own | settings).items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif value is not ...:
            flags += [f"--{name}", str(value)]
    return called(program, "--output_dir", str(folder), *flags)


def trained(kind: str, folder: Path, **settings) -> Path:
    result = run(kind, folder, **settings)
    assert result.code == 0, result.err
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("unclip")
    towers = trained("towers", folder / "towers")
    decoder = trained("decoder", folder / "decoder", two_towers=towers)
    return {"towers": towers, "decoder": decoder, "prior": trained("prior", folder / "prior", decoder=decoder)}


@pytest.fixture(scope="module")
def pipe(runs):
    pipe = MezzotintPriorPipeline.from_pretrained(runs["prior"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def variation(pipe):
    variation = MezzotintVariationPipeline.from_pipe(pipe)
    variation.set_progress_bar_config(disable=True)
    return variation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CALL = {"num_inference_steps": 2, "output_type": "pt"}


# ------------------------------------------------------------------------------------------------------------ the runs


@pytest.mark.parametrize("kind", OF)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(runs, tmp_path, kind):
    shutil.copytree(runs[kind] / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    needs = {"decoder": {"two_towers": runs["towers"]}, "prior": {"decoder": runs["decoder"]}}.get(kind, {})
    again = trained(kind, tmp_path / "run", resume_from_checkpoint="latest", **needs)
    for name in ("weights", "optimizer", "ema"):
        assert distance(saved(again, 6, name), saved(runs[kind], 6, name)) == 0, name
    for column in ("loss", "held_out_loss"):
        assert logged(again, column) == logged(runs[kind], column) != {}
    parts = [runs[kind], *(runs[kind] / name for name in ("unet", "prior", "two_towers"))]
    for path in [path for part in parts for path in part.glob("*.safetensors")]:
        assert distance(load_file(path), load_file(again / path.relative_to(runs[kind]))) == 0, path


def test_a_card_of_two_towers_says_what_they_are_worth(runs):
    metrics = json.loads((runs["towers"] / "metrics.json").read_text())
    card = (runs["towers"] / "README.md").read_text()
    assert f"Of {100 * metrics['quality']['picked']:.1f} % of the held-out pictures" in card
    assert ModelCard(card).data.library_name == "transformers" and metrics["command"].startswith("mezzotint train-two")


@pytest.mark.parametrize("kind", ["decoder", "prior"])
def test_whoever_has_no_mezzotint_loads_it(runs, pipe, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    theirs = DiffusionPipeline.from_pretrained(runs[kind], trust_remote_code=True)
    theirs.set_progress_bar_config(disable=True)
    assert type(theirs).__module__.startswith("diffusers_modules")
    call = {"prompt": "7"} if kind == "prior" else {"image": torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)}
    ours = pipe if kind == "prior" else MezzotintVariationPipeline.from_pretrained(runs[kind])
    pair = [x(**call, **CALL, generator=seeded()).images for x in (theirs, ours)]
    assert torch.equal(*pair)


def test_cards_and_grids_say_what_was_made(runs):
    for kind, name, tag in (
        ("decoder", "MezzotintVariationPipeline", "image-to-image"),
        ("prior", "MezzotintPriorPipeline", "text-to-image"),
    ):
        card = (runs[kind] / "README.md").read_text()
        assert f"`{name}.from_pretrained`" in card and ModelCard(card).data.pipeline_tag == tag
        assert (
            "CLIPModel" in card and json.loads((runs[kind] / "model_index.json").read_text())["_class_name"][1] == name
        )
    grids = [np.asarray(Image.open(runs[kind] / "samples" / "step-000006.png")) for kind in ("decoder", "prior")]
    assert [grid.shape for grid in grids] == [(2 * 68, 8 * 68, 3), (68, 10 * 68, 3)]


def test_programs_know_it(runs, tmp_path, capsys):
    """Pictures from the shell, with a picture and with a text; a post-hoc average keeps the class."""
    Image.new("L", (8, 8), 200).save(tmp_path / "given.png")
    output = tmp_path / "drawn.png"
    words = ["--num_inference_steps", "2", "--output", str(output)]
    assert cli.main(["sample", str(runs["prior"]), "7", "8", *words]) == 0
    assert Image.open(output).size == (8, 16)
    assert cli.main(["sample", str(runs["decoder"]), "--image", str(tmp_path / "given.png"), *words]) == 0
    assert Image.open(output).size == (8, 8)
    given = ["--image", str(tmp_path / "given.png"), "--mask", str(tmp_path / "given.png")]
    for kind in ("decoder", "prior"):
        assert cli.main(["sample", str(runs[kind]), *given, *words]) == 2
        assert "mask is not for weights of unclip, which draw variations of a pict" in capsys.readouterr().err
    assert cli.main(["sample", str(runs["decoder"]), "7", *words]) == 2
    assert "has no prior" in capsys.readouterr().err
    words = [
        "--count",
        "40",
        "--features",
        "random",
        "--num_inference_steps",
        "1",
        "--output",
        str(tmp_path / "f.json"),
    ]
    assert cli.main(["evaluate", str(runs["prior"]), *words]) == 0
    losses = [row["value"] for row in json.loads((tmp_path / "f.json").read_text())["held_out_loss"]]
    assert len(losses) == 4 and all(0 < loss < 2 for loss in losses)
    assert cli.main(["evaluate", str(runs["decoder"]), *words]) == 2
    assert "must be trained for text_to_image: got one for unclip" in capsys.readouterr().err
    assert cli.main(["ema", str(runs["decoder"]), "--length", "0.1", "--output", str(tmp_path / "mean")]) == 0
    index = json.loads((tmp_path / "mean" / "model_index.json").read_text())
    assert index["_class_name"][1] == "MezzotintVariationPipeline"


def test_tabs_are_of_the_weights(pipe, runs):
    assert tasks_of(pipe) == [MezzotintPriorPipeline, MezzotintVariationPipeline]
    assert tasks_of(MezzotintVariationPipeline.from_pretrained(runs["decoder"])) == [MezzotintVariationPipeline]


# -------------------------------------------------------------------------------------------------------------- oracles


def test_embeddings_are_those_of_transformers(pipe, runs):
    model = CLIPModel.from_pretrained(runs["towers"])
    tokenizer = AutoTokenizer.from_pretrained(runs["towers"])
    processor = CLIPImageProcessor.from_pretrained(runs["towers"])
    pixels = torch.randint(0, 256, (1, 8, 8), generator=seeded(), dtype=torch.uint8)
    picture = Image.fromarray(pixels[0].numpy())
    with torch.no_grad():
        tokens = tokenizer(["seven", "a handwritten nine"], padding=True, return_tensors="pt")
        text = model.get_text_features(**tokens).pooler_output
        image = model.get_image_features(**processor(picture, return_tensors="pt")).pooler_output
        torch.testing.assert_close(pipe.encode_text(["seven", "a handwritten nine"]), F.normalize(text, dim=-1))
        torch.testing.assert_close(pipe.encode_image(picture), F.normalize(image, dim=-1), atol=1e-5, rtol=1e-5)


def test_a_picture_of_another_size_is_scaled_and_cropped(pipe):
    small = torch.rand(1, 3, 8, 8, generator=seeded()) * 2 - 1
    with torch.no_grad():
        wide = F.pad(small.repeat_interleave(2, 2).repeat_interleave(2, 3), (6, 6, 0, 0))
        scale = pipe.trained_for["image_mean"], pipe.trained_for["image_std"]
        a, b = (embed_pictures(pipe.two_towers, x, *scale) for x in (small, wide))
    assert a.shape == b.shape == (1, 6) and (a * b).sum() > 0.8


def test_a_variation_is_the_picture_of_its_embedding(pipe, variation):
    picture = torch.rand(1, 1, 8, 8, generator=seeded())
    embeds = variation.encode_image(picture)
    drawn = variation(image=picture, **CALL, generator=seeded()).images
    assert torch.equal(variation(image_embeds=embeds, **CALL, generator=seeded()).images, drawn)
    longer = variation(image_embeds=3 * embeds, **CALL, generator=seeded()).images  # the direction counts
    torch.testing.assert_close(longer, drawn, atol=1e-5, rtol=0)
    assert torch.equal(pipe(image_embeds=embeds, **CALL, generator=seeded()).images, drawn)
    assert torch.equal(variation("", image=picture, **CALL, generator=seeded()).images, drawn)
    assert torch.equal(variation("7", image=picture, strength=0, **CALL, generator=seeded()).images, drawn)
    same = variation("7", image=picture, source_prompt="7", strength=1, **CALL, generator=seeded()).images
    assert torch.equal(same, drawn)
    assert not torch.equal(variation("7", image=picture, **CALL, generator=seeded()).images, drawn)


def test_an_edit_goes_all_the_way_to_the_difference_of_texts(variation):
    picture = torch.rand(1, 1, 8, 8, generator=seeded())
    towards = F.normalize(variation.encode_text("7") - variation.encode_text("1"), dim=-1)
    edited = variation("7", image=picture, source_prompt="1", strength=1, **CALL, generator=seeded()).images
    expected = variation(image_embeds=towards, **CALL, generator=seeded()).images
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=0)


def test_interpolation_is_on_the_arc_and_ends_at_its_ends(variation):
    a, b = (F.normalize(torch.randn(1, 6, generator=seeded(i)), dim=-1) for i in (0, 1))
    angle = (a * b).sum().acos()
    weights = torch.tensor([0.0, 0.3, 1.0])
    found = variation.interpolate(a, b, weights)
    torch.testing.assert_close(found[[0, 2]], torch.cat([a, b]), atol=1e-6, rtol=0)
    torch.testing.assert_close((found * a).sum(1).clamp(max=1).acos(), weights * angle, atol=1e-3, rtol=0)
    torch.testing.assert_close((found * b).sum(1).clamp(max=1).acos(), (1 - weights) * angle, atol=1e-3, rtol=0)
    torch.testing.assert_close(slerp(a, a, 0.4), a, atol=1e-6, rtol=0)


def test_the_prior_draws_as_a_loop_by_hand_over_stock_parts(pipe):
    """Classifier-free guidance with the empty text, and the scale of the embeddings put back."""
    noise, scheduler = (
        torch.randn(2, 6, generator=seeded()),
        MezzotintScheduler.from_config(pipe.prior_scheduler.config),
    )
    with torch.no_grad():
        text, empty = pipe.encode_text(["1", "7"]), pipe.encode_text("").expand(2, -1)
        found = pipe.draw_embeds(text, None, 4, 3.0, None, noise)
        scheduler.set_timesteps(4)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            cond, uncond = (pipe.prior(x, t, y).predicted_image_embedding for y in (text, empty))
            x = scheduler.step(uncond + 3 * (cond - uncond), t, x).prev_sample
    expected = F.normalize(pipe.prior.post_process_latents(x), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    images = pipe(["1", "7"], prior_latents=noise, prior_num_inference_steps=4, prior_guidance_scale=3, **CALL,
                  generator=seeded()).images  # fmt: skip
    torch.testing.assert_close(images, pipe(image_embeds=found, **CALL, generator=seeded()).images, atol=1e-5, rtol=0)


def test_each_picture_depends_on_its_own_generator_alone(pipe):
    both = pipe(["1", "7"], **CALL, generator=[seeded(1), seeded(2)]).images
    alone = pipe(["7"], **CALL, generator=[seeded(2)]).images
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
    assert (pipe("7", num_images_per_prompt=2, **CALL, generator=seeded()).images.diff(dim=0) != 0).any()


def test_a_prior_of_one_point_comes_to_it(pipe):
    """A network that knows the data to be one point predicts it whatever the noise: the scale of the embeddings is a
    deviation of nothing about it, and every text's embedding becomes it."""
    point = F.normalize(torch.randn(1, 6, generator=seeded()), dim=-1)
    prior = PriorTransformer.from_config(pipe.prior.config)
    prior.load_state_dict(pipe.prior.state_dict() | {"clip_mean": point, "clip_std": torch.full((1, 6), 1e-6)})
    one = MezzotintPriorPipeline(**pipe.components | {"prior": prior})
    one.set_progress_bar_config(disable=True)
    with torch.no_grad():
        found = one.draw_embeds(one.encode_text(["1", "7"]), None, 3, 2.0, seeded())
    torch.testing.assert_close(found, point.expand(2, -1), atol=1e-4, rtol=0)


def test_the_loss_of_a_linear_gaussian_prior_is_its_closed_form():
    """Where embedding and text are jointly Gaussian, z = a c + sqrt(1 - a^2) e in each dimension, the best velocity is
    linear in (x_t, c), and its loss the conditional variance of v, which a network's loss must come to."""
    scheduler, a, count, width = MezzotintScheduler(), 0.8, 40_000, 4
    generator = seeded()
    text, own, noise = (torch.randn(count, width, generator=generator) for _ in range(3))
    z = a * text + (1 - a**2) ** 0.5 * own
    t = torch.full((count,), 400.0)
    alpha = float(scheduler.add_noise(torch.ones(1, 1), torch.zeros(1, 1), t[:1]))
    sigma = (1 - alpha**2) ** 0.5
    s2 = 1 - a**2  # variance of z given the text
    gain = alpha * s2 / (alpha**2 * s2 + sigma**2)

    class Best(torch.nn.Module):
        config, dtype = PriorTransformer(embedding_dim=width, num_layers=1, num_embeddings=0).config, torch.float32

        def forward(self, x, timestep, text, return_dict):
            mean = a * text + gain * (x - alpha * a * text)  # E[z | x, c]
            return (alpha * (x - alpha * mean) / sigma - sigma * mean,)

    loss = denoising_loss(
        MezzotintPriorNetwork(Best()), scheduler, z[..., None, None], noise[..., None, None], t, text[:, None]
    )
    # v = alpha e - sigma z, and given x_t and the text z alone is unknown: Var v = Var z / sigma^2
    expected = s2 * sigma**2 / (alpha**2 * s2 + sigma**2) / sigma**2
    assert loss.mean().item() == pytest.approx(expected, rel=0.02)


def test_the_contrastive_loss_is_that_of_transformers_where_captions_differ():
    seen, read = (F.normalize(torch.randn(5, 6, generator=seeded(i)), dim=-1) for i in (0, 1))
    scale = torch.tensor(2.0)
    found = contrastive_loss(seen, read, scale, list("abcde"))
    torch.testing.assert_close(found.mean(), image_text_contrastive_loss(scale.exp() * read @ seen.T))
    alike = contrastive_loss(seen[:1].expand(4, -1), read[:1].expand(4, -1), scale, ["a"] * 4)
    torch.testing.assert_close(alike, torch.full((4,), 4.0).log())  # none is better than another


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "kind, settings, rule",
    [
        ("towers", {"vision_tower": "{patch_size: 3}"}, "patch_size must divide 8: got 3"),
        ("towers", {"text_tower": "{width: 3}"}, "CLIPTextConfig has no argument 'width'"),
        ("towers", {"train_batch_size": 1}, "train_batch_size must be at least 2: got 1"),
        ("decoder", {"two_towers": ...}, "task unclip needs two_towers, or pretrained_model_name_or_path"),
        ("decoder", {"random_flip": True}, "random_flip would mirror pictures after they are embedded"),
        ("decoder", {"streaming": True}, "task unclip needs a set at hand"),
        ("decoder", {"task": "text_to_image"}, "two_towers is for task unclip"),
        ("decoder", {"unet": json.dumps(UNET | {"cross_attention_dim": 7})}, "cross_attention_dim must be 6"),
        ("decoder", {"two_towers": "decoder"}, "cannot be loaded"),
        ("prior", {"decoder": ...}, "decoder must name a pipeline of train.py --task unclip: got none"),
        ("prior", {"decoder": "towers"}, "cannot be loaded"),
        ("prior", {"prior": "{embedding_dim: 7}"}, "the prior's embedding_dim follows from the two_towers"),
        ("prior", {"prior": "{depth: 7}"}, "PriorTransformer has no argument 'depth'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(runs, tmp_path, kind, settings, rule):
    needs = {
        "decoder": {"two_towers": runs["towers"], "recipe": "digits-unclip"},
        "prior": {"decoder": runs["decoder"]},
    }
    needs = needs.get(kind, {}) | {name: runs.get(value, value) if isinstance(value, str) else value
                                   for name, value in settings.items()}  # fmt: skip
    if needs.get("two_towers") is ... or needs.get("decoder") is ...:
        needs["config"] = tmp_path / "none.yaml"
        needs["config"].write_text("two_towers: null\n" if kind == "decoder" else "decoder: null\n")
    result = run(kind, tmp_path / "run", **needs)
    assert result.code == 2 and rule in result.err, result.err
    assert result.err.strip().count("\n") == 0
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run" / "recipe.yaml").exists()


def edited(runs: dict[str, Path], folder: Path, change) -> Path:
    shutil.copytree(runs["towers"], folder)
    weights = load_file(folder / "model.safetensors")
    change(weights, folder)
    save_file({name: x.contiguous() for name, x in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_embeddings_without_a_scale_are_refused(runs, tmp_path):
    def flat(weights, folder):
        weights["visual_projection.weight"].zero_()
        weights["visual_projection.weight"][0] = 1  # all pictures are on one axis

    towers = edited(runs, tmp_path / "flat", flat)
    result = run("decoder", tmp_path / "run", two_towers=towers)
    assert result.code == 2 and "embeddings of the two_towers must vary: channel" in result.err
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_towers_of_different_widths_are_refused(runs, tmp_path):
    from transformers import CLIPTextModel, CLIPVisionModel, VisionTextDualEncoderModel

    towers = load_towers(str(runs["towers"]))
    model = VisionTextDualEncoderModel(
        vision_model=CLIPVisionModel(towers.model.config.vision_config),
        text_model=CLIPTextModel(towers.model.config.text_config),
    )
    model.text_projection = torch.nn.Linear(16, 5, bias=False)
    with pytest.raises(ValueError, match="both towers must embed in one space: got texts 5 and pictures 512 wide"):
        towers._replace(model=model).width()


def test_a_run_does_not_go_on_with_another_encoder(runs, tmp_path):
    def other(weights, folder):
        weights["visual_projection.weight"] += 0.1

    towers = edited(runs, tmp_path / "other", other)
    shutil.copytree(runs["decoder"] / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    result = run("decoder", tmp_path / "run", two_towers=towers, resume_from_checkpoint="latest")
    assert result.code == 2 and "holds a run on other data (other two towers)" in result.err


def test_what_a_call_cannot_take_is_said_in_one_line(pipe, variation, runs):
    picture = torch.rand(1, 1, 8, 8, generator=seeded())
    decoder = MezzotintPriorPipeline.from_pretrained(runs["decoder"])
    for function, arguments, rule in (
        (pipe, {}, "exactly one of prompt and image_embeds must be given: got neither"),
        (pipe, {"prompt": "7", "image_embeds": torch.ones(1, 6)}, "got both"),
        (pipe, {"image_embeds": torch.ones(1, 7)}, r"image_embeds must have shape \(pictures, 6\): got \(1, 7\)"),
        (pipe, {"prompt": "7", "prior_num_inference_steps": 0}, "prior_num_inference_steps must be a positive"),
        (pipe, {"prompt": "7", "prior_latents": torch.ones(2, 6)}, r"prior_latents must have shape \(1, 6\)"),
        (decoder, {"prompt": "7"}, "this pipeline has no prior"),
        (variation, {}, "exactly one of image and image_embeds must be given: got neither"),
        (variation, {"image": picture, "strength": 2}, r"strength must be a number in \[0, 1\]: got 2"),
        (variation, {"prompt": ["1", "2"], "image": picture.expand(3, -1, -1, -1)}, "prompt needs one entry, or one"),
    ):
        with pytest.raises(ValueError, match=rule) as error:
            function(**arguments, **CALL)
        assert "\n" not in str(error.value)


def test_every_recipe_holds_differences_from_its_own_defaults():
    for kind, defaults in (
        (TwoTowersConfig, TwoTowersConfig(dataset_name="any")),
        (PriorConfig, PriorConfig(dataset_name="any", decoder="any")),
    ):
        assert recipes(kind) == ["digits", "emoji-64"]
        for name in recipes(kind):
            lines = (place(kind) / f"{name}.yaml").read_text().splitlines()
            settings = dict(line.split(": ", 1) for line in lines if ": " in line and line[0] not in " #")
            assert not [key for key, value in settings.items() if value == str(getattr(defaults, key))]


def test_towers_do_not_go_on_with_another_text_encoder(tmp_path):
    """Which is not trained, so that no checkpoint of theirs holds it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "handwritten", "zero"]
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "text")
    more = {"text_encoder_name_or_path": tmp_path / "text", "text_tower": ..., "max_text_length": ...}
    for seed, code in ((0, 0), (1, 2), (0, 0)):
        torch.manual_seed(seed)
        BertModel(BertConfig(vocab_size=len(words), **width)).save_pretrained(tmp_path / "text")
        result = run("towers", tmp_path / "towers", **more)
        assert result.code == code, result.err
        assert ("holds a run on other data (other text encoder)" in result.err) == (code == 2)
