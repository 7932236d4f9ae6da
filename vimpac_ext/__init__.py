"""vimpac_ext: modular self-supervised video pre-training and video classification."""

__version__ = "0.1.0"
