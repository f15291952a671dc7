"""Training: data, the Region Proposal Network, its losses and the loop (torch)."""
