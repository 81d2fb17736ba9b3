# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a prior is worth (unCLIP), at equal processor time in all, two towers included:

    pip install -c constraints.txt -e ".[benchmarks]"
    python training/benchmarks/prior_quality.py digits --seconds 240
    python training/benchmarks/prior_quality.py emoji-32 --data path/to/emoji-32 --seconds 700

- text states: the ordinary pipeline, whose network reads a text's hidden states by cross-attention.
- text embedding: a decoder of pictures' embeddings that is handed the text's embedding in their place, one that is
  trained for as long as decoder and prior are, and the prior's.
- prior: such a decoder, handed what a prior draws for the text.
- picture embedding: the prior's decoder, handed the embedding of a real picture of the caption: what a perfect prior
  would come to.

Accuracy is how often a support vector machine of real digits reads the digit, or how often a two-tower model, which is
trained to judge and for nothing else, picks the caption out of 32; the kernel distance (KID) is on features of a
classifier, or of that model. Diversity is the mean distance on these features between two pictures that are drawn for
one caption; beside it that between two real pictures, of one digit, or of any two captions. Grids go to --output.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mezzotint import MezzotintPriorPipeline, MezzotintVariationPipeline
from mezzotint_training.benchmarks.digits_accuracy import reader
from mezzotint_training.benchmarks.quality import SCALES, run, steps_within
from mezzotint_training.benchmarks.task_quality import grid
from mezzotint_training.config.flags import Help, parse_args
from mezzotint_training.config.prior import PriorConfig
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.towers import TwoTowersConfig
from mezzotint_training.metrics.accuracy import accuracy
from mezzotint_training.metrics.distances import kernel_distance
from mezzotint_training.metrics.features import make_features
from mezzotint_training.metrics.intervals import estimated, share
from mezzotint_training.metrics.judges import ClassJudge
from mezzotint_training.metrics.pictures import Real, draw, read, real_pictures
from mezzotint_training.networks.saved import load_pipeline

PARTS = {"towers": 0.3, "decoder": 0.45, "prior": 0.25}  # of the time of the whole
SAME = 8  # pictures of a caption among which diversity is measured
QUIET = [
    "--num_validation_samples", "0", "--validation_steps", "1000000", "--checkpointing_steps", "1000000",
    "--report_to", "none", "--no-load_back", "--validation_prompts",
]  # fmt: skip
EMOJI = ["--caption_column", "text", "{text}, {keywords}", "{subgroup}: {text}", "--caption_weights", "2", "1", "1"]


def settings(args: argparse.Namespace, part: str, root: Path, *more: str) -> Any:
    """Those of a run, to be of any length."""
    kind = {"towers": TwoTowersConfig, "prior": PriorConfig}.get(part, TrainConfig)
    unet = part in ("decoder", "straight", "ordinary")
    if args.set == "digits":
        words = ["--recipe", "digits-unclip" if part in ("decoder", "straight") else "digits"]
    else:
        words = ["--train_data_dir", args.data, "--resolution", "32", "--mixed_precision", "bf16", *EMOJI]
        network = json.dumps(SCALES["emoji-32"].ours)
        words += ["--unet", network, "--train_batch_size", "32", "--logit_mean", "0.7"] if unet else []
        words += ["--balance_column", "subgroup", "--balance_power", "0.5", "--ema_decay", "0.995"]
        words += ["--task", "unclip"] if part in ("decoder", "straight") else []
        if part == "ordinary":
            words += ["--text_encoder_name_or_path", args.text]
        if part == "towers":
            words += ["--vision_tower", "{hidden_size: 128, intermediate_size: 256}", "--train_batch_size", "64",
                      "--optimizer", "muon", "--learning_rate", "5e-3"]  # fmt: skip
            words += ["--text_encoder_name_or_path", args.text] if args.text else []
    quiet = QUIET[:-2] if part == "towers" else QUIET
    return parse_args([*words, *more, "--output_dir", str(root / part), *quiet], "", kind)


def trained(args: argparse.Namespace, part: str, root: Path, seconds: float, *more: str) -> tuple[Path, float]:
    """The folder of a run of so many seconds of processor time, and the seconds that it took."""
    folder, told = root / part, root / f"{part}.seconds"
    if not told.is_file():
        config = settings(args, part, root, *more)
        (config.max_train_steps,) = steps_within([seconds], "ours", config, args.threads)
        took = run("ours", config, args.threads).processor
        told.write_text(json.dumps([took, config.max_train_steps]))
    took, steps = json.loads(told.read_text())
    print(f"{part}: {steps:,} updates, {took:.0f} s", flush=True)
    return folder, took


def systems(args: argparse.Namespace, root: Path) -> dict[str, Path]:
    """The folders of the runs; what is there already is taken."""
    goal = {part: part_of * args.seconds for part, part_of in PARTS.items()}
    towers, spent = trained(args, "towers", root, goal["towers"])
    decoder, first = trained(args, "decoder", root, goal["decoder"], "--two_towers", str(towers))
    prior, second = trained(args, "prior", root, goal["prior"], "--decoder", str(decoder))
    straight, _ = trained(args, "straight", root, first + second, "--two_towers", str(towers))
    ordinary, _ = trained(args, "ordinary", root, spent + first + second)
    return {"prior": prior, "straight": straight, "ordinary": ordinary}


class Handed:
    """A decoder as a pipeline that draws from text, with the embeddings that a function of the texts gives."""

    def __init__(self, pipe: Any, embeds: Any):
        self.pipe, self.embeds = pipe, embeds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __call__(self, prompt: list[str], **arguments: Any) -> Any:
        return self.pipe(image_embeds=self.embeds(prompt), **arguments)


def diversity(features: torch.Tensor) -> tuple[float, float]:
    """The mean distance between two of the members of each group, features (groups, members, D), and half the width of
    its 95 % interval over groups."""
    distances = torch.cdist(features, features).sum((1, 2)) / (features.shape[1] * (features.shape[1] - 1))
    return float(distances.mean()), float(1.96 * distances.std() / len(distances) ** 0.5)


def judged(args: argparse.Namespace, folders: dict[str, Path]) -> list[list[str]]:
    """The table."""
    loaded: dict[str, Any] = {name: load_pipeline(folder) for name, folder in folders.items()}
    config = settings(args, "ordinary", folders["ordinary"].parent)
    images, classes = real_pictures(config, loaded["ordinary"], "test", None)
    train, test = (read(x, classes, "label") for x in images)
    kind = "classifier" if args.set == "digits" else "two-tower"
    judge = make_features(kind, train, classes, torch.device("cpu"), args.judge_steps, 0)
    svm = reader()[0] if args.set == "digits" else None

    rows = torch.randperm(len(test.pixels), generator=torch.Generator().manual_seed(0))[: args.count]
    asked = test.rows(rows.repeat(-(-args.count // len(rows)))[: args.count])
    same = [texts[:1] for texts in asked.captions[: args.count // SAME] for _ in range(SAME)]
    texts = [caption for captions in train.captions for caption in captions[:1]]
    generator = torch.Generator().manual_seed(1)
    decoder = MezzotintVariationPipeline(**loaded["prior"].components)
    known: dict[str, list[int]] = {}
    own = {captions[0]: i for i, captions in enumerate(test.captions)}
    for i, text in enumerate(texts):
        known.setdefault(text, []).append(i)

    def seen(prompt: list[str]) -> torch.Tensor:
        """Embeddings of real pictures of the captions, training ones where they are known."""
        pixels = []
        for text in prompt:
            some = known.get(text)
            at = some[int(torch.randint(len(some), (), generator=generator))] if some else own[text]
            pixels.append(train.pixels[at] if some else test.pixels[at])
        return decoder.encode_image(torch.stack(pixels) / 255)

    straight = MezzotintVariationPipeline(**loaded["straight"].components)
    arms: dict[str, tuple[Any, dict[str, Any]]] = {"text states": (loaded["ordinary"], {})}
    arms["text embedding"] = (Handed(straight, straight.encode_text), {})
    arms["text embedding, the prior's decoder"] = (Handed(decoder, decoder.encode_text), {})
    for scale in args.prior_guidance_scale:
        arms[f"prior, its guidance {scale:g}"] = (
            MezzotintPriorPipeline(**loaded["prior"].components), {"prior_guidance_scale": scale}
        )  # fmt: skip
    arms["picture embedding"] = (Handed(decoder, seen), {})
    how = {"num_inference_steps": args.steps, "batch_size": 100, "progress": False}
    real = judge(test.pixels)
    found, drawings = [], []
    for name, (pipe, more) in arms.items():
        for guidance in args.guidance_scale:
            pixels = draw(pipe, asked.captions, **how, guidance_scale=guidance, seed=0, **more)
            (distance,) = estimated(kernel_distance, judge(pixels), real)
            if svm is not None:
                read_as = torch.from_numpy(svm.predict(pixels.flatten(1).numpy() / 255))
                right = share(int((read_as == asked.labels).sum()), len(pixels))
                correct = f"{right.value:.1%} ({right.interval[0]:.1%} to {right.interval[1]:.1%})"
            else:
                hits: Any = accuracy(judge, Real(pixels, asked.captions, asked.labels), None, test)
                correct = f"{hits['value']:.1%} ({hits['interval'][0]:.1%} to {hits['interval'][1]:.1%})"
            alike = draw(pipe, same, **how, guidance_scale=guidance, seed=1, **more)
            spread, around = diversity(judge(alike).unflatten(0, (-1, SAME)))
            thousand = [1000 * x for x in (distance.value, *distance.interval)]
            found.append([name, f"{guidance:g}", correct, "{:.1f} ({:.1f} to {:.1f})".format(*thousand),
                          f"{spread:.2f} ± {around:.2f}"])  # fmt: skip
            print(found[-1], flush=True)
            drawings.append(alike)
    grid(args.output / f"prior-{args.set}.png", [*drawings, test.pixels], 24)
    variations(args, decoder, test)
    features = judge(test.pixels)
    if isinstance(judge, ClassJudge):
        groups = [features[test.labels == label][: 2 * SAME] for label in range(len(classes))]
    else:
        groups = [features[torch.randperm(len(features), generator=generator)[: 2 * SAME]] for _ in range(20)]
    spread, around = diversity(torch.stack([some[: min(map(len, groups))] for some in groups]))
    found.append(["real pictures", "", "", "", f"{spread:.2f} ± {around:.2f}"])
    return [["what the network is handed", "guidance", "accuracy", "KID x 1000", "diversity"], *found]


def variations(args: argparse.Namespace, decoder: Any, test: Real) -> None:
    """A grid to look at: pictures with their variations, the way from one to another, and edits by texts."""
    how = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale[-1], "output_type": "pt"}
    picks = torch.randperm(len(test.pixels), generator=torch.Generator().manual_seed(3))[:8]
    pictures, count = test.pixels[picks], 7

    def drawn(same_noise: int = 0, **call: Any) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(0) for _ in range(same_noise)] or torch.Generator().manual_seed(0)
        return (decoder(**call, **how, generator=generators).images * 255).round().byte()

    rows = []
    for picture in pictures:
        rows.append(torch.cat([picture[None], drawn(image=picture[None] / 255, num_images_per_prompt=count)]))
    grid(args.output / f"prior-{args.set}-variations.png", rows, count + 1)
    rows = []
    weights = torch.linspace(0, 1, count + 1)
    for first, second in zip(pictures[::2], pictures[1::2], strict=True):
        embeds = decoder.interpolate(first[None] / 255, second[None] / 255, weights)
        rows.append(drawn(len(embeds), image_embeds=embeds))
    captions = [test.captions[i][0] for i in picks]
    for picture, source, target in zip(pictures[:4], captions[:4], captions[4:], strict=True):
        steps = [drawn(prompt=target, source_prompt=source, image=picture[None] / 255, strength=float(x))
                 for x in torch.linspace(0, 1, count)]  # fmt: skip
        rows.append(torch.cat([picture[None], *steps]))
    grid(args.output / f"prior-{args.set}-edits.png", rows, count + 1)
    print("edits: " + "; ".join(f"{a} → {b}" for a, b in zip(captions[:4], captions[4:], strict=True)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("set", choices=["digits", "emoji-32"], help="what to train on")
    parser.add_argument("--data", help="folder of the set, where it is not digits")
    parser.add_argument("--text", help="folder of a pretrained text encoder, for emoji")
    parser.add_argument("--seconds", type=float, default=240, help="processor seconds of each system in all")
    parser.add_argument("--count", type=int, default=400, help="pictures to draw")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[1.0, 2.0], help="of the U-Net")
    parser.add_argument("--prior_guidance_scale", type=float, nargs="+", default=[1.0, 2.0], help="of the prior")
    parser.add_argument("--judge_steps", type=int, default=400, help="updates of the judge")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, default=Path("runs/prior_quality"), help="folder for the grids")
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in, and to take those from that are there")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        table = judged(args, systems(args, args.runs or Path(place)))
    for i, line in enumerate(table):
        print(f"| {' | '.join(line)} |" + ("\n|" + "---|" * len(line) if i == 0 else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
