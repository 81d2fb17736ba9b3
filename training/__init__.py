"""The training programs, one file a program. Importing this package loads nothing, but decides how threads wait."""

from mezzotint_training.engine import threads as threads  # before torch
