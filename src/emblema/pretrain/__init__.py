"""Survey 5: systems that learn from image-text pairs. One file each; `base.py` is what they share."""
