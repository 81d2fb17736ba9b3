# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train a classifier of noisy samples, whose gradient steers a pipeline: section 4 of arXiv 2105.05233.

    mezzotint train-classifier --pipeline runs/digits --dataset_name digits --validation_split test
    accelerate launch training/train_classifier.py --pipeline runs/mine --train_data_dir pictures/ --label_column kind
    mezzotint train-classifier --pipeline runs/spoken-digits --train_data_dir sounds/ --label_column speaker

Scheduler, data scale and size of the samples are the pipeline's, whether they are pictures, sounds, videos, solids or
molecules, so that the classifier sees the noise that it makes.
`output_dir` becomes that pipeline with a `classifier`. A run takes minutes; one that was stopped starts anew.
"""

import mezzotint_training  # noqa: F401 (before torch: it decides how threads wait)

# isort: split
import inspect
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mezzotint import MezzotintClassifier, MezzotintScheduler
from mezzotint_training.config.arguments import CLASSIFIER_SETTINGS, parser_of
from mezzotint_training.config.errors import CannotGoOn, UserError, exit_code, one_line
from mezzotint_training.config.flags import parsed
from mezzotint_training.config.rules import known_arguments, new_folder, shown
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.labels import labelled
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.data.source import Rows, Source, fixed_items, look_at
from mezzotint_training.engine import sharding
from mezzotint_training.engine.process import end_together, make_accelerator
from mezzotint_training.engine.progress import progress_bar
from mezzotint_training.engine.report import Losses
from mezzotint_training.learning.held_out import LEVELS
from mezzotint_training.learning.learner import Learner
from mezzotint_training.metrics.intervals import share
from mezzotint_training.networks.saved import load_pipeline


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("train-classifier")

    def program() -> None:
        args = vars(parser.parse_args(argv))
        # every other setting is at its default: no caption is dropped, no tracker called
        config = TrainConfig(
            **{name: args[name] for name in CLASSIFIER_SETTINGS}, caption_column=args["label_column"],
            proportion_empty_prompts=0, report_to="none",
        )  # fmt: skip
        train(config, args["pipeline"], args["classifier"], args["only_classifier"])

    return exit_code(program)


def train(config: TrainConfig, pipeline: str, arguments: str, only_classifier: bool) -> None:
    """Train a classifier for `pipeline` and write both, or it alone, to `config.output_dir`.

    Args:
        config: of which `CLASSIFIER_SETTINGS` are read; its captions are the labels.
        pipeline: a folder or a Hub name.
        arguments: of `MezzotintClassifier`, as YAML.
        only_classifier: whether to leave the pipeline out.

    Raises:
        UserError: for bad input, before anything on disk is touched.
        CannotGoOn: for a loss that is no number.
    """
    started, output_dir = time.time(), new_folder("output_dir", Path(config.output_dir))
    given = parsed("classifier", arguments)
    if not isinstance(given, dict):
        raise UserError(f"classifier must be a mapping of names to values: got {shown(arguments)}")
    given = known_arguments(given, MezzotintClassifier)
    accelerator = make_accelerator(config, output_dir)
    device, say = accelerator.device, accelerator.print
    if sharding.sharded(accelerator):
        raise UserError("a classifier is trained whole on each process: got FSDP; possible is DDP")
    pipe: Any = load_pipeline(pipeline, "pipeline")
    config.modality = None if pipe.modality == "image" else pipe.modality
    if pipe.vae is not None:
        raise UserError("a classifier is trained in pixels: got a pipeline that draws in the latents of a vae")
    shape, scheduler = pipe.unet.config, MezzotintScheduler.from_config(pipe.scheduler.config)

    # 1. The data, with labels where captions are
    splits, classes = labelled(load_splits(config), config.caption_column[0])
    rows = Rows(*held_out(config, splits))
    facts = look_at(rows, config, pipe.components)
    source = Source(rows, config, facts, accelerator)
    source.normalise(shape)
    numbers = {name: number for number, name in enumerate(classes)}

    # 2. The classifier, made like the U-Net's encoder
    torch.manual_seed(config.seed)
    parameters = inspect.signature(MezzotintClassifier).parameters
    try:
        fixed = {
            "num_classes": len(classes),
            "id2label": dict(enumerate(classes)),
            "sample_size": list(facts.size),
        }
        like = {name: shape[name] for name in parameters if name in shape}
        classifier: Any = MezzotintClassifier(**like | given | fixed).to(device).train()
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"classifier cannot be made: {one_line(error)}") from None
    # It begins with what the U-Net has learned of noisy pictures, where the two are alike
    own = classifier.state_dict()
    learned = {k: v for k, v in pipe.unet.state_dict().items() if k in own and v.shape == own[k].shape}
    classifier.load_state_dict(learned, strict=False)
    learner = Learner(config, {"classifier": classifier}, accelerator)
    parameters = sum(p.numel() for p in learner.parameters.values())
    say(f"{len(source.known)} {pipe.word}s of {len(classes)} classes, {parameters:,} parameters")
    for line in sorted(source.bad):
        say(f"skipped: {line}")

    # 3. The loop
    torch.manual_seed((config.seed * accelerator.num_processes + accelerator.process_index) % 2**64)  # of dropout
    batches, losses, mean = source.batches(0), Losses(accelerator), None
    for step in progress_bar(
        range(1, config.max_train_steps + 1), "training", config.max_train_steps, accelerator.is_local_main_process
    ):
        # ------------------------------------------------------------------------------------------------ one update
        batch = next(batches)
        for line in source.new_bad_rows(batch):
            say(f"skipped: {line}")
        labels = torch.tensor([numbers[name] for name in batch["captions"]], device=device)  # (B,)
        sample, noise, uniform = (batch[name].to(device) for name in ("sample", "noise", "uniform"))
        timesteps = uniform * (len(scheduler) - 1)
        with accelerator.autocast():
            noisy = scheduler.add_noise(sample, noise, timesteps)
            logits = learner.models["classifier"](noisy, timesteps, return_dict=False)[0]
        loss = F.cross_entropy(logits.float(), labels, reduction="none")  # (B,)
        accelerator.backward(loss.mean())
        learner.step(step)
        losses.add(loss, uniform)
        # ------------------------------------------------------------------------------------------------------------
        if step % config.logging_steps == 0 or step == config.max_train_steps:
            mean, by_noise_level = losses.means()
            if mean is None or not math.isfinite(mean):
                end_together(accelerator)
                raise CannotGoOn(f"the loss is {mean} at step {step}: a lower learning_rate may help")
            quarters = " ".join("-" if x is None else f"{x:.3f}" for x in by_noise_level)
            say(f"step {step:,} of {config.max_train_steps:,}: loss {mean:.4f}, from little noise to much {quarters}")

    # 4. How good it is, and where it is kept
    if accelerator.is_main_process:
        with learner.averaged():
            figures = accuracies(classifier, scheduler, source.held_out, numbers, config.train_batch_size)
            for row in figures:
                low, high = row["interval"]
                say(
                    f"held-out accuracy at timestep {row['timestep']:g}{'' if row['noise'] else ', without noise'}: "
                    f"{row['accuracy']:.1%} of {row['pictures']} (95 % interval {low:.1%} to {high:.1%})"
                )
            if only_classifier:
                classifier.save_pretrained(output_dir)
            else:
                pipe.register_modules(classifier=classifier)
                pipe.save_pretrained(output_dir)
            metrics = {
                "steps": config.max_train_steps,
                "loss": mean,
                "seconds": time.time() - started,
                "held_out": figures,
            }
            folder = output_dir if only_classifier else output_dir / "classifier"
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
            say(f"finished: {output_dir} ({config.max_train_steps} steps, {metrics['seconds']:.0f} s, loss {mean:.4f})")
    end_together(accelerator)


@torch.no_grad()
def accuracies(
    classifier: MezzotintClassifier,
    scheduler: MezzotintScheduler,
    samples: CaptionedSamples | None,
    numbers: dict[str, int],
    batch_size: int,
) -> list[dict[str, Any]]:
    """Share of the held-out samples that are recognised, without noise and in the middle of each quarter of the
    timesteps, with Wilson's 95 % interval."""
    items = fixed_items(samples, len(samples)) if samples is not None else []
    figures = []
    for noisy, level in [(False, 0.0), *((True, level) for level in LEVELS)] if items else []:
        generator, correct, timestep = torch.Generator().manual_seed(0), 0, level * (len(scheduler) - 1)
        for batch in (items[i : i + batch_size] for i in range(0, len(items), batch_size)):
            sample = torch.stack([item["sample"] for item in batch])  # (B, C, *S)
            if noisy:
                noise = torch.randn(sample.shape, generator=generator)
                sample = scheduler.add_noise(sample, noise, torch.full((len(batch),), timestep))
            found = classifier(sample.to(classifier.device), timestep, return_dict=False)[0].argmax(dim=1).tolist()
            correct += sum(number == numbers[item["caption"]] for number, item in zip(found, batch, strict=True))
        accuracy, interval = share(correct, len(items))
        figures.append(
            {"timestep": timestep, "noise": noisy, "pictures": len(items)}
            | {"accuracy": accuracy, "interval": list(interval)}
        )
    return figures


if __name__ == "__main__":
    sys.exit(main())
