"""Imported by a process that others are forked from: what each of them would do again, and what all of them share."""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("t5")  # compiles the patterns of all of transformers' models
gc.freeze()  # what all forks share is not looked through, and so not copied, in each
