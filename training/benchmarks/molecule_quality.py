# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How good drawn molecules are, beside real ones, a recurrent network that is trained here, and MOSES' baselines.

    python training/benchmarks/molecule_quality.py runs/molecules --data path/to/molecules --count 2000
    python training/benchmarks/molecule_quality.py runs/molecules --data path/to/molecules --peer_seconds 720

Molecules are drawn for captions of the training split, without guidance, and compared with the test split, whose ring
systems are in no training molecule. So real molecules are the ceiling of each figure: as many of the training split in
the place of drawn ones. The peer is a character model, MOSES' CharRNN with GRUs on the same tokens, trained for as
many seconds of the processor as are given. The number of molecules counts in a Fréchet distance: MOSES' are of 30,000
and more.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from mezzotint import MezzotintMoleculePipeline
from mezzotint_training.config.flags import Help
from mezzotint_training.metrics.molecules import canonical, chemnet_distance, chemnet_features, logp_error, shares
from mezzotint_training.modalities.molecules import header

BATCH = 250
# Valid, unique of 10,000, novel, and the Fréchet ChemNet distance to the test set (1811.12823, tables 2 and 3), each
# trained on 1.6 million molecules of ZINC
MOSES = {
    "CharRNN": (0.975, 0.999, 0.842, 0.073),
    "VAE": (0.977, 0.998, 0.695, 0.099),
    "AAE": (0.937, 0.997, 0.793, 0.556),
    "JTN-VAE": (1.0, 1.0, 0.914, 0.395),
    "LatentGAN": (0.897, 0.997, 0.950, 0.297),
    "NGram": (0.238, 0.922, 0.969, 5.507),
    "HMM": (0.076, 0.567, 0.999, 24.466),
}


class CharacterModel(nn.Module):
    """Tokens in order, each from those before it: an embedding, GRUs, and a layer that says what comes next."""

    def __init__(self, tokens: int, width: int = 256):
        super().__init__()
        self.embedding = nn.Embedding(tokens, 64)
        self.recurrent = nn.GRU(64, width, num_layers=2, batch_first=True)
        self.out = nn.Linear(width, tokens)

    def forward(self, tokens: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, L, tokens) of the tokens after `tokens` (B, L), and the state after them."""
        found, after = self.recurrent(self.embedding(tokens), state)
        return self.out(found), after


def train_peer(strings: list[tuple[str, ...]], seconds: float, seed: int = 0) -> tuple[CharacterModel, list[str], int]:
    """A character model that is trained for so many seconds, its tokens, of which the first begins and ends a string,
    and how many strings it has seen."""
    torch.manual_seed(seed)
    tokens = ["", *sorted({token for string in strings for token in string})]
    number = {token: place for place, token in enumerate(tokens)}
    rows = [torch.tensor([0, *(number[token] for token in string), 0]) for string in strings]
    model, seen, rng = CharacterModel(len(tokens)), 0, np.random.default_rng(seed)
    optimizer, began = torch.optim.Adam(model.parameters(), 2e-3), time.process_time()
    while (share := (time.process_time() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - share)
        batch = [rows[i] for i in rng.integers(len(rows), size=64)]
        batch = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-1)
        logits, _ = model(batch[:, :-1].clamp(min=0))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += len(batch)
    return model.eval(), tokens, seen


@torch.no_grad()
def drawn_by_peer(model: CharacterModel, tokens: list[str], count: int, longest: int, seed: int = 0) -> list[str]:
    """Strings that a character model draws, token by token."""
    generator, found = torch.Generator().manual_seed(seed), []
    while len(found) < count:
        last, state, strings = torch.zeros(BATCH, 1, dtype=torch.long), None, []
        for _ in range(longest):
            logits, state = model(last, state)
            last = torch.multinomial(logits[:, -1].softmax(-1), 1, generator=generator)
            strings.append(last)
        for row in torch.cat(strings, 1).tolist():
            found.append("".join(tokens[token] for token in row[: row.index(0) if 0 in row else None]))
    return found[:count]


def drawn_by(pipe: Any, prompts: list[str], seed: int, **arguments: Any) -> list[str]:
    """A molecule for each prompt, and for each row of the lists among the arguments."""
    found = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        own = {name: value[part] if isinstance(value, list) else value for name, value in arguments.items()}
        generator = torch.Generator().manual_seed(seed + start)
        found += pipe(prompts[part], generator=generator, **own).molecules
    return found


def figures(smiles: list[str | None], known: set[str], real: torch.Tensor | None) -> dict[str, Any]:
    """The figures of a row of the table."""
    found: dict[str, Any] = {name: figure._asdict() for name, figure in shares(smiles, known).items()}
    valid = [one for one in smiles if one is not None]
    if real is not None and len(valid) > 1:
        found["fcd"] = chemnet_distance(chemnet_features(valid), real)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, by what they are of."""
    pipe = MezzotintMoleculePipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    splits, notation = datasets.load_dataset(args.data), pipe.notation
    train, test, rng = splits["train"], splits["test"], np.random.default_rng(args.seed)
    known = set(canonical(train[notation], notation))
    count, found = min(args.count, len(train)), {}
    chosen = rng.permutation(len(train))[:count].tolist()
    real = None if args.no_fcd else chemnet_features(canonical(test[notation], notation))
    steps = {"num_inference_steps": args.num_inference_steps}

    rows = train.select(chosen)
    found["real molecules of the training split"] = figures(canonical(rows[notation], notation), known, real)
    drawn = drawn_by(pipe, rows["text"], args.seed, guidance_scale=1.0, **steps)
    found["drawn"] = figures(canonical(drawn, notation), known, real) | {"examples": drawn[:8]}
    if "logp" in (pipe.unet.config.attributes or {}):
        asked = [test[i]["logp"] for i in rng.integers(len(test), size=args.asked)]
        drawn = drawn_by(
            pipe,
            [""] * args.asked,
            args.seed + 1,
            guidance_scale=1.0,
            attributes=[{"logp": value} for value in asked],
            attribute_guidance_scale={"logp": args.attribute_guidance_scale},
            **steps,
        )
        found["logp"] = {
            "as asked": logp_error(canonical(drawn, notation), asked)._asdict(),
            "whatever is asked": logp_error(canonical(drawn, notation), rng.permutation(asked).tolist())._asdict(),
        }
    if args.peer_seconds:
        strings = [header(one, {"notation": notation}).tokens for one in train[notation]]
        model, tokens, seen = train_peer(strings, args.peer_seconds, args.seed)
        longest = max(map(len, strings))
        drawn = drawn_by_peer(model, tokens, count, longest, args.seed)
        found["character model"] = figures(canonical(drawn, notation), known, real) | {"seen": seen}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("checkpoint", help="a pipeline that draws molecules: a folder or a Hub name")
    parser.add_argument("--data", required=True, help="the set that it was trained on, with a test split")
    parser.add_argument("--count", type=int, default=2000, help="molecules to draw")
    parser.add_argument("--asked", type=int, default=500, help="molecules to draw for a logP")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--attribute_guidance_scale", type=float, default=2.0, help="weight of the logP")
    parser.add_argument(
        "--peer_seconds", type=float, default=0, help="seconds of the processor to train the character model for"
    )
    parser.add_argument("--no_fcd", action="store_true", help="leave out the Fréchet distance, which needs fcd")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")
    parser.add_argument("--output", type=Path, help="a JSON file to write all figures to")
    args = parser.parse_args(argv)
    found = measure(args)
    print("| | valid | unique | novel | FCD |\n|---|--:|--:|--:|--:|")
    for name, row in found.items():
        if name != "logp":
            cells = [f"{100 * row[key]['value']:.1f} %" if key in row else "" for key in ("valid", "unique", "novel")]
            print(f"| {name} | {' | '.join(cells)} | {row.get('fcd', float('nan')):.2f} |")
    for name, row in MOSES.items():
        print(f"| {name} (MOSES) | {' | '.join(f'{100 * share:.1f} %' for share in row[:3])} | {row[3]:.2f} |")
    print(json.dumps(found))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
