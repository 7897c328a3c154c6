"""The networks: FC-DenseNet, a classifier from the same blocks, and baselines behind the same contract."""

from tiramisu.models.baseline import SmpNetwork
from tiramisu.models.blocks import DenseBlock, DenseLayer, TransitionDown, TransitionUp
from tiramisu.models.encoder_decoder import EncoderFCDenseNet
from tiramisu.models.fc_densenet import (
    VARIANTS,
    DenseNetClassifier,
    FCDenseNet,
    fc_densenet56,
    fc_densenet67,
    fc_densenet103,
)
from tiramisu.models.network import SegmentationNetwork, load_network

__all__ = [
    "VARIANTS",
    "DenseBlock",
    "DenseLayer",
    "DenseNetClassifier",
    "EncoderFCDenseNet",
    "FCDenseNet",
    "SegmentationNetwork",
    "SmpNetwork",
    "TransitionDown",
    "TransitionUp",
    "fc_densenet56",
    "fc_densenet67",
    "fc_densenet103",
    "load_network",
]
