"""How much one visitor may ask for."""

import dataclasses

from tiramisu.errors import ImageError

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the app, all of them; `server.maxUploadSize` in .streamlit/config.toml is the larger `*_mib`.

    Attributes:
        image_mib: size of an image file.
        pixels: of an image, or of a video's frame.
        images: of a visitor.
        session_mib: size of all image files of a visitor.
        results: of a visitor that are kept; the oldest go first.
        video_mib: size of a video file.
        frames: of a video that are segmented.
        waiting: images that may wait for the network, of all visitors together.
        display_side: in pixels, of what the viewer is sent.
    """

    image_mib: int = 50
    pixels: int = 40_000_000
    images: int = 300
    session_mib: int = 1000
    results: int = 900
    video_mib: int = 200
    frames: int = 900
    waiting: int = 32
    display_side: int = 1280

    def check_file(self, name: str, size: int, video: bool = False) -> None:
        """Refuse a file that is too large.

        Args:
            name: of the file.
            size: in bytes.
            video: whether it is one.

        Raises:
            ImageError: it is.
        """
        limit = self.video_mib if video else self.image_mib
        if size > limit * MIB:
            raise ImageError(f"{name}: {size / MIB:.0f} MiB are more than the limit of {limit} MiB; make it smaller")


LIMITS = Limits()
