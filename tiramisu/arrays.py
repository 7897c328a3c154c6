"""Types of the arrays that images, masks and probabilities are."""

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
