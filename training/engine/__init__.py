"""The run itself: processes, positions, checkpoints, files. Nothing here knows of pictures or networks."""
