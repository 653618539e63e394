"""The autoencoder of motion-compensated latents: it encodes a frame as the way in which the first frame moved.

channels.py defines the latent channels, model.py encodes and decodes, warp.py moves pictures, optical_flow.py estimates
the displacements of real clips.
"""

from cinemo.autoencoder.model import AutoencoderMotion

__all__ = ["AutoencoderMotion"]
