"""How much one visitor may ask for."""

import dataclasses

from tiramisu.errors import ImageError

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the app, all of them; `server.maxUploadSize` in .streamlit/config.toml is the larger `*_mib`.

    Attributes:
        image_mib: size of an image file.
        pixels: of an image.
        seen: pixels of an image times how often the network sees each: several times with flip TTA or MC-dropout.
        frame_pixels: of a video's frame.
        images: of a visitor.
        session_mib: size of all image files and results of a visitor.
        server_mib: of all visitors together.
        results: of a visitor that are kept; the oldest go first.
        package_mib: size of the photos that go into the ZIP file of results; it is made in memory.
        video_mib: size of a video file.
        frames: of a video that are segmented.
        at_once: images that are at work, of all visitors together; each may take half a gigabyte.
        waiting: images that may wait for that.
        display_side: in pixels, of what the viewer is sent.
    """

    image_mib: int = 50
    pixels: int = 40_000_000
    seen: int = 80_000_000
    frame_pixels: int = 9_000_000
    images: int = 300
    session_mib: int = 1000
    server_mib: int = 10_000
    results: int = 900
    package_mib: int = 100
    video_mib: int = 200
    frames: int = 900
    at_once: int = 4
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

    def check_work(self, name: str, pixels: int, views: int) -> None:
        """Refuse an image that would keep the network for many minutes.

        Args:
            name: of the file.
            pixels: of the image.
            views: how often the network sees each.

        Raises:
            ImageError: it would.
        """
        if pixels * views > self.seen:
            raise ImageError(
                f"{name}: {pixels / 1e6:.0f} megapixels are too many with these settings, which look at each {views} "
                f"times; up to {self.seen / views / 1e6:.0f} are possible, or turn off MC-dropout or the mirrored image"
            )


LIMITS = Limits()
