"""Interactive post-training for Vision-Language-Action policies."""
