# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Open a page in the browser around a trained pipeline: draw, watch pictures come out of the noise, and dissolve in it.

mezzotint demo runs/digits
mezzotint demo user/name --port 8080
mezzotint demo runs/digits --space digits-space

It is served on this machine alone unless --host or --share says more, and runs none of the code in the checkpoint. With
--space a folder is written that runs as a Space on the Hub.
"""

import argparse
import importlib.util
import os
import socket
import sys
import threading
from pathlib import Path

from mezzotint_training.config.errors import CannotGoOn, UserError, exit_code, one_line, silenced
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.rules import at_least, at_most, new_folder


def main(argv: list[str] | None = None) -> int:
    parser = Parser("demo", __doc__)
    parser.add_argument("checkpoint", type=text, help="a trained pipeline: a folder or a Hub name")
    parser.add_argument("--host", type=text, default="127.0.0.1", help="address to serve at; 0.0.0.0 is all networks")
    parser.number(
        "port", int, at_least(1), at_most(65535), help="port to serve at; by default the first free one from 7860 on"
    )
    parser.add_argument("--share", action="store_true", help="serve at a public address too, by Gradio's tunnel")
    parser.add_argument("--mcp", action="store_true", help="offer the tasks as tools to language models too (MCP)")
    parser.number(
        "concurrency_limit", int, at_least(1), at_most(64), default=1, help="visitors who are drawn for at a time"
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the code in the checkpoint, which may do anything"
    )
    parser.add_argument("--device", help="device to draw on; by default cuda where there is one, or else cpu")
    parser.add_argument("--space", type=text, help="write a Space to this new or empty folder, and serve nothing")
    return exit_code(lambda: demo(parser.parse_args(argv)))


def demo(args: argparse.Namespace) -> None:
    """Serve the page, or write the Space, that the arguments ask for.

    Raises:
        UserError: for bad input, before anything is served.
        CannotGoOn: for a page that cannot be reached, here or at a public address.
    """
    needed = {"gradio": "mezzotint[demo]"} | ({"mcp": "gradio[mcp]"} if args.mcp else {})
    for name, package in needed.items():
        if importlib.util.find_spec(name) is None:
            raise UserError(f"demo needs {name}; pip install '{package}' brings it")
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:  # before any work; of an address that is none, Gradio would wait for ever
        socket.create_server((args.host, args.port or 0), family=family).close()
    except OSError as error:
        got = args.host if args.port is None else f"{args.host}, {args.port}"
        raise UserError(f"host and port must be free to serve at: got {got} ({one_line(error)})") from None
    # Late, so that help and refusals come at once; Gradio last, which a checkpoint that cannot be loaded never needs
    import torch

    from mezzotint_training.networks.saved import load_pipeline

    name = (
        args.checkpoint if not os.path.exists(args.checkpoint) else os.path.basename(os.path.abspath(args.checkpoint))
    )
    if args.space is not None and args.trust_remote_code:
        raise UserError("trust_remote_code is not for a Space, which runs package code only: leave one of the two out")
    folder = None if args.space is None else new_folder("space", Path(args.space))
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load_pipeline(args.checkpoint, device=device, trust_remote_code=args.trust_remote_code)
    if folder is not None:
        from mezzotint_training.publishing.space import write_space

        write_space(folder, args.checkpoint, name, pipe.modality)
        print(f"{folder}: a Space; `python app.py` there, or `hf upload user/name {folder} . --repo-type space`")
        return

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio, whose parts ask it when they are imported
    from mezzotint.demo.controls import Checkpoint
    from mezzotint.demo.page import launch, make_page

    page = make_page(Checkpoint.of(pipe, args.checkpoint, name), args.concurrency_limit)
    options = {"share": args.share, "mcp_server": args.mcp, "prevent_thread_lock": True, "quiet": True}
    try:
        with silenced():
            _, address, public = launch(page, server_name=args.host, server_port=args.port, **options)
    except (OSError, ValueError):  # Gradio asks its own page before it says that it is there
        page.close(verbose=False)
        raise CannotGoOn(
            f"the page does not answer at {args.host}: a proxy may be in its way, or a busy machine"
        ) from None
    if args.share and public is None:
        page.close()
        raise CannotGoOn("a public address cannot be had: the tunnel of Gradio did not open")
    print(f"{name}: {address}{f' and {public}' if public else ''} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
