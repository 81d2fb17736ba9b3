"""What `mezzotint evaluate` could have measured, with figures that are easy to find again."""

FIGURE = {"value": 0.25, "interval": [0.125, 0.5]}
BOTH = FIGURE | {"real": {"value": 0.75, "interval": [0.625, 0.875]}}
EVALUATION = {
    "settings": {"num_inference_steps": 4, "guidance_scale": 2.0, "seed": 0},
    "data": {"dataset_name": None, "train_data_dir": "sprites"},
    "pictures": {"drawn": 50, "held_out": 40, "train": 60, "floor": 50, "new_captions": 0},
    "features": {"random": {"kernel_distance": BOTH, "frechet_distance": BOTH, "recall": BOTH}},
    "prompt_accuracy": {"two-tower": BOTH | {"choices": 8}},
    "copy_rate": BOTH | {"features": "clip", "threshold": 0.5, "same": 0.0},
    "held_out_loss": [FIGURE],
    "command": ["mezzotint", "evaluate", "my run", "--card"],
}
