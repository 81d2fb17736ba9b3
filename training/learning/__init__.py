"""How a network learns: the objective, optimizers, averages, and the loss on held-out samples."""
