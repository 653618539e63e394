"""The autoencoder of motion-compensated latents: what a frame shows, said as how the first frame must be moved.

channels.py says what a latent channel holds, model.py encodes and decodes, warp.py moves pictures, flow.py finds the
displacements of real clips.
"""

from cinemo.autoencoder.model import AutoencoderMotion

__all__ = ["AutoencoderMotion"]
