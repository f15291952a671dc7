"""Assignment of anchors, losses and optimizers."""
