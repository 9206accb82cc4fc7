"""The networks alone: the U-Net and the transformer."""
