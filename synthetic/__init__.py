"""Drawn pictures with captions, the small CLIP that is trained on them, and the data sets drawn from a seed.

Read in this order: `shapes` (signed distances), `paint` (colours, textures, compositing), `scenes` (what a picture
shows), `captions` (what is said about it), `sets` (the data sets), `pretrain` (the training of the carried CLIP).
The drawing modules need numpy, Pillow and scikit-learn's digits only.
"""
