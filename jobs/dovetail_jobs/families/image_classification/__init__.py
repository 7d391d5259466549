"""Image classification with a Swin Transformer (Liu et al. 2021, arXiv 2103.14030)."""
