"""Data sets, augmentation and loaders."""

from tiramisu.data.camvid import CamVid
from tiramisu.data.loading import open_source
from tiramisu.data.source import Sample, Source
from tiramisu.data.streets import Streets

__all__ = ["CamVid", "Sample", "Source", "Streets", "open_source"]
