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
from mezzotint_training.config.errors import CannotGoOn, UserError, exit_code
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.settings import HELP
from mezzotint_training.publishing import card, evaluation, publication


def main(argv: list[str] | None = None) -> int:
    parser = Parser("publish", __doc__)
    parser.add_argument("folder", type=text, help="a finished run's output_dir")
    parser.add_argument("--hub_model_id", type=text, required=True, help="user/name of the repository to upload to")
    parser.add_argument("--private", "--hub_private_repo", dest="private", action="store_true",
                        help="upload to a private repository only")  # fmt: skip
    parser.add_argument("--revision", type=text, help="branch to upload to, made where it is missing; by default main")
    parser.add_argument("--dry_run", action="store_true",
                        help="make all checks, list what would go up, and change nothing")  # fmt: skip
    parser.add_argument("--license", type=text, help="licence of the weights, for a card that names none")
    parser.add_argument(
        "--replace_card", action="store_true", help="replace a card on the Hub that somebody wrote or edited by hand"
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        help="the pipeline that adapters were trained for; by default the one that their recipe names",
    )
    parser.add_argument("--prompt", help="prompt of the picture that is compared; by default the card's first")
    parser.add_argument("--trust_remote_code", action="store_true",
                        help="let the checks run code in the folder that is not the installed package's")  # fmt: skip
    parser.add_argument("--no-evaluate", dest="evaluate", action="store_false",
                        help="publish a run that was not evaluated as it is")  # fmt: skip
    for name in evaluation.PLACES:
        parser.add_argument(f"--{name}", type=text, help=f"{HELP[name]}; of the run, to evaluate it by")
    return exit_code(lambda: publish(parser.parse_args(argv)))


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
    places = {name: value for name in evaluation.PLACES if (value := getattr(args, name)) is not None}
    parser = evaluation.arguments(Parser("evaluate", None))
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
