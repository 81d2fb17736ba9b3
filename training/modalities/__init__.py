"""One sample: from a cell of a data set to a tensor, and back."""
