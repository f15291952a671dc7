"""The Region Proposal Network: backbones, anchors, head and the proposal stage."""
