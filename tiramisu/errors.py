"""Errors that a user can act on: each says in one line what is wrong, where, and the remedy."""


class TiramisuError(Exception):
    """Base of every error that the commands report as one line instead of a traceback."""


class DataError(TiramisuError):
    """A data set, image or mask is missing, unreadable or inconsistent."""


class WeightsError(TiramisuError):
    """Weights or a checkpoint are missing, unsafe, damaged or of another architecture."""


class ConfigError(TiramisuError):
    """An option or a configuration file is wrong."""


class DivergedError(TiramisuError):
    """The training loss became NaN or infinite."""


class ImageError(TiramisuError):
    """An image or video cannot be decoded."""
