"""From a data set to the batches of a run."""
