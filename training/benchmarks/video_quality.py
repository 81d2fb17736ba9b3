# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How well walking figures are drawn: whether direction, action and clothes are those that were asked for, whether one
figure stays the same from frame to frame, how far the videos are from real ones, and how many are copies.

    mezzotint train --recipe walks --train_data_dir path/to/walks-32 --text_encoder_name_or_path ...
    python training/benchmarks/video_quality.py runs/walks --train_data_dir path/to/walks-32

Two classifiers are trained on the real training clips alone: of direction and action together, which sees all frames of
a clip, and of clothes, which sees one frame, both at half their size. Each figure stands beside that of real clips of
the test split, whose
combinations of body, hair and clothes no training saw. A frame keeps its figure if, by the features of the second
classifier, the first frame of its own clip is nearer to it than the first frames of all other clips in the same
direction. For the floors, real clips of the test split are changed: each with its first frame repeated, and each with
every frame taken from another clip of that direction, as if frames were drawn one by one.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from diffusers.utils import make_image_grid
from PIL import Image

from mezzotint_training.benchmarks.judged import Figures, arguments, prepared, program
from mezzotint_training.metrics.accuracy import distances
from mezzotint_training.metrics.copies import copies
from mezzotint_training.metrics.intervals import Figure, average, share
from mezzotint_training.metrics.judges import ClassJudge, train_class_judge
from mezzotint_training.metrics.pictures import shuffled
from mezzotint_training.modalities.contents import unit

CHANNELS = 3
SHOWN = 8  # drawn and real clips in the grid


def frames_of(clips: torch.Tensor) -> torch.Tensor:
    """Clips as judges look at them (N, 3 T, H, W) as frames (N, T, 3, H, W)."""
    return clips.unflatten(1, (CHANNELS, -1)).transpose(1, 2)


def halved(clips: torch.Tensor) -> torch.Tensor:
    """Clips at half their size, for judges at a quarter of the cost."""
    return F.avg_pool2d(clips.float(), 2).round().byte()


def kept(judge: ClassJudge, clips: torch.Tensor, directions: torch.Tensor) -> Figure:
    """The share of frames after the first that are nearest to the first frame of their own clip, among all clips in the
    same direction."""
    frames = frames_of(clips)
    features = judge(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # (N, T, D)
    features = F.normalize(features - features.mean((0, 1)), dim=-1)
    likeness = torch.einsum("ntd,md->ntm", features[:, 1:], features[:, 0])
    likeness = likeness.masked_fill((directions[:, None] != directions)[:, None], -torch.inf)
    own = likeness.argmax(-1) == torch.arange(len(clips))[:, None]
    return share(int(own.sum()), own.numel())


def measure(args: argparse.Namespace) -> Figures:
    """Every figure: drawn for captions that were trained on, drawn for those of the test split, real."""
    data = prepared(args, "video_quality")
    shown = {"known": data.known[0], "unseen": data.unseen[0], "real": data.test.pixels}
    train, sets = halved(data.train.pixels), {name: halved(clips) for name, clips in shown.items()}
    test = sets["real"]
    ways = data.labels("direction")
    acts, clothes = data.labels("action"), data.labels("torso")
    asked = {
        name: {
            "known": of[0][data.known[1]],
            "unseen": of[1],
            "real": of[1],
        }
        for name, of in (("direction", ways), ("action", acts), ("clothes", clothes))
    }
    count, seed, cpu = len(acts[2]), args.seed, torch.device("cpu")
    motion = train_class_judge(train, ways[0] * count + acts[0], len(ways[2]) * count, args.judge_steps, seed, cpu)
    one = shuffled(len(train), seed) % frames_of(train).shape[1]  # a frame of each clip, and some more
    frames = torch.cat([frames_of(train)[torch.arange(len(train)), (one + shift) % 8] for shift in (0, 3, 5)])
    look = train_class_judge(frames, clothes[0].repeat(3), len(clothes[2]), args.judge_steps, seed, cpu)

    def read(clips: torch.Tensor) -> dict[str, torch.Tensor]:
        moves, seen = motion.read(clips), frames_of(clips)
        features = torch.stack([look.head(look.tower(unit(seen[:, t]))) for t in range(seen.shape[1])])
        worn = features.log_softmax(-1).mean(0).argmax(-1)
        return {"direction": moves // count, "action": moves % count, "clothes": worn}

    found: Figures = {}
    said = {name: read(clips) for name, clips in sets.items()}
    for what, labels in asked.items():
        hits = {name: said[name][what] == labels[name] for name in sets}
        found[f"{what} as asked"] = tuple(share(int(x.sum()), len(x)) for x in hits.values())
    found["a frame keeps its figure"] = tuple(
        kept(look, clips, asked["direction"][name]) for name, clips in sets.items()
    )
    steps = {name: frames_of(clips).float().diff(dim=1).abs().mean((1, 2, 3, 4)) for name, clips in shown.items()}
    found["movement, grey levels from frame to frame"] = tuple(average(x) for x in steps.values())
    features = {name: motion(clips) for name, clips in sets.items()}
    floor = motion(train[shuffled(len(train), seed + 1)[: len(test)]])
    far = [distances(x, features["real"])["frechet_distance"] for x in (features["known"], features["unseen"], floor)]
    found["Fréchet distance to the test split; real is as many training clips"] = (far[0], far[1], far[2])
    alike = [
        copies(*(unit(x).flatten(1) for x in (sets[name], test, train)), rate=0.05) for name in ("known", "unseen")
    ]
    found["copy rate"] = (alike[0].drawn, alike[1].drawn, alike[0].real)

    # Floors, of real clips that are changed
    still = frames_of(test)[:, :1].expand(-1, 8, -1, -1, -1).transpose(1, 2).flatten(1, 2)
    hits = read(still)["action"] == acts[1]
    found["action as asked, the first frame repeated"] = (None, None, share(int(hits.sum()), len(hits)))
    mixed = frames_of(test).clone()
    for way in ways[1].unique():
        rows = (ways[1] == way).nonzero()[:, 0]
        for t in range(mixed.shape[1]):
            mixed[rows, t] = frames_of(test)[rows.roll(t), t]
    one_by_one = kept(look, mixed.transpose(1, 2).flatten(1, 2), ways[1])
    found["a frame keeps its figure, frames of several clips"] = (None, None, one_by_one)

    if args.grid:
        strips = []
        for clips in shown.values():
            for clip in frames_of(clips[:SHOWN]):
                strips.append(Image.fromarray(torch.cat(list(clip), -1).permute(1, 2, 0).numpy()))
        make_image_grid(strips, rows=SHOWN * 3, cols=1).resize((1024, 3 * SHOWN * 128), 0).save(args.grid)
    return found


def main(argv: list[str] | None = None) -> int:
    return program(arguments("video_quality", __doc__, "video"), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
