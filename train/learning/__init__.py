"""What the network learns from: assignment, losses, optimizers, and the size of a batch."""
