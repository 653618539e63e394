"""The residual motion U-Net (paper, section 3.2): LaVie's architecture with a motion embedding."""

from cinemo.unet.model import CinemoUNet

__all__ = ["CinemoUNet"]
