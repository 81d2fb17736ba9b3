# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Upload a trained pipeline to the Hub, load it back where mezzotint is not installed, and compare a picture.

    mezzotint publish runs/digits --hub_model_id user/digits
    mezzotint publish runs/digits --hub_model_id user/digits --dry_run

Before anything is uploaded, the Hub is asked whether it would take it, every file is looked through (secrets, places on
this machine, sizes, links), and a stranger's process loads what is to go up and draws. A run that was not evaluated is,
where its pictures are at hand; but for that the folder is only read. An upload that was interrupted goes on when the
same command is run again. What is on a list goes up, and nothing else of the folder.

Exit codes: 0 published, and loaded back; 2 refused, with nothing changed on the Hub; 3 failed in the middle.
"""

import argparse
import sys
from pathlib import Path

from mezzotint import hub
from mezzotint_training.config.arguments import parser_of
from mezzotint_training.config.errors import CannotGoOn, UserError, exit_code
from mezzotint_training.config.recipe import PLACES
from mezzotint_training.publishing import card, evaluation, publication


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: publish(parser_of("publish").parse_args(argv)))


def publish(args: argparse.Namespace) -> None:
    """Check, evaluate, draw, upload, and draw the same from what is there.

    Raises:
        UserError: for what cannot be published, before anything is uploaded.
        CannotGoOn: for an upload that failed, cannot be loaded back, or draws another picture.
    """
    folder, base = Path(args.folder), args.pretrained_model_name_or_path

    # 1. What would prevent it, all at once
    ready, found = publication.prepare(folder, args.license, base)
    found += hub.refusals(args.hub_model_id, ready.card)
    if ready.foreign and not args.trust_remote_code:
        found.append(
            f"to be loaded back its code must run, and that is not the installed package's ({ready.foreign[0]}): "
            "read it, then --trust_remote_code runs it"
        )
    if found:
        raise UserError("; ".join(found))

    # 2. How good it is, if nobody has measured that
    if args.evaluate and (why_not := evaluate_first(folder, args)):
        print(f"not evaluated, which the card says: {why_not}")
    ready, _ = publication.prepare(folder, args.license, base)

    # 3. The proof, first by what is here
    proof = publication.proof(ready, args.prompt)
    try:
        verdict = publication.as_a_stranger(ready, proof)
    except CannotGoOn as error:
        raise UserError(f"{folder} cannot be published: {error}") from None
    if not verdict.same:
        raise UserError(f"{folder} cannot be published: where mezzotint is not installed it draws {verdict}")
    if args.dry_run:
        for name, path in ready.content.files.items():
            print(f"{path.stat().st_size:>14,} bytes  {name}")
        for name in ready.content.left_out:
            print(f"{'left out':>20}  {name}")
        print(
            f"{len(ready.content.files)} files, {ready.bytes:,} bytes, would go to {args.hub_model_id}; loaded where "
            f"mezzotint is not installed: {verdict} ({verdict.seconds:.1f} s)"
        )
        return
    publication.upload(ready, args.hub_model_id, proof, args.private, args.replace_card, args.revision)


def evaluate_first(folder: Path, args: argparse.Namespace) -> str | None:
    """Evaluate a run that was not, as `mezzotint evaluate --card` does. Returns the reason where it cannot be.

    Raises:
        UserError: where the pictures were named and do not serve.
    """
    if not card.of_a_run(folder) or (folder / card.EVALUATION).is_file():
        return None
    if (folder / hub.CARD).is_file() and not hub.unedited((folder / hub.CARD).read_text(encoding="utf-8")):
        return f"{hub.CARD} was edited by hand; `mezzotint evaluate {folder} --card` writes it anew"
    places = {name: value for name in PLACES if (value := getattr(args, name)) is not None}
    parser = parser_of("evaluate")
    asked = parser.parse_args([str(folder), "--card", *(word for x in places.items() for word in (f"--{x[0]}", x[1]))])
    if args.dry_run:
        return "a dry run"
    print("evaluating, as nobody has yet; --no-evaluate leaves it out", flush=True)
    try:
        evaluation.measure_and_keep(asked, parser)
    except UserError as error:
        if places:
            raise
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
