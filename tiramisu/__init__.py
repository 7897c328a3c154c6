"""Tiramisu: semantic segmentation with FC-DenseNet, the One Hundred Layers Tiramisu (Jégou et al., 2017).

The commands are modules: ``python -m tiramisu`` lists them. Importing this package is light: neither
Lightning nor anything that touches the network is loaded.
"""

__version__ = "0.2.0"
