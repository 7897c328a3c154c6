"""Using trained networks: segmenting images, folders and videos; measuring; engines and graphs."""

from tiramisu.images import decode_image
from tiramisu.inference.segmenter import Options, Segmentation, Segmenter

__all__ = ["Options", "Segmentation", "Segmenter", "decode_image"]
