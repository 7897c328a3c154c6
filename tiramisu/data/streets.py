"""Built-in street scenes, drawn procedurally with CamVid's classes: data for quickstart, tests and demos.

A scene is laid out on a ground plane in metres, as seen from a car, and painted from far to near on the image and the
mask at once, so that nearer things cover farther ones in both.
"""

import functools
from collections.abc import Callable
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from tiramisu.arrays import UInt8Array
from tiramisu.data.camvid import CamVid
from tiramisu.data.source import Sample
from tiramisu.labels import LabelSet

SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, VOID = range(12)

Color = NDArray[np.float64]
Point = tuple[float, float]

NEAR = 2.5  # metres; nothing is drawn nearer than this
FAR = 90.0
SUBPIXEL_BITS = 4  # OpenCV takes fixed-point coordinates; 1/16 pixel keeps thin things from flickering


class Streets:
    """Street scenes that are drawn, not stored; the same (seed, index) always gives the same scene.

    Args:
        split: `train`, `val` or `test`; they share no scene.
        image_size: height and width of the scenes in pixels.
        seed: another seed gives another city.
    """

    labels: ClassVar[LabelSet] = CamVid.labels
    license: ClassVar[str] = "MIT"
    whole_views: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    LENGTHS: ClassVar[dict[str, int]] = {"train": 400, "val": 40, "test": 80}
    DEFAULT_SIZE: ClassVar[tuple[int, int]] = (360, 480)

    def __init__(self, split: str = "train", image_size: tuple[int, int] = DEFAULT_SIZE, seed: int = 0) -> None:
        self.length = self.LENGTHS[split]
        self.image_size = image_size
        self.seed = seed
        # Splits begin far apart, so that they stay disjoint however long they become.
        self.first = 1_000_000 * self.splits.index(split)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Return one scene."""
        number = self.first + index
        image, mask = _cached_scene(self.seed, number, *self.image_size)
        return Sample(image, mask, f"street {number}")


@functools.lru_cache(maxsize=1024)  # at most 350 MB of 240 x 320 scenes a process; an epoch of `train` fits
def _cached_scene(seed: int, number: int, height: int, width: int) -> tuple[UInt8Array, UInt8Array]:
    image, mask = draw_scene(seed, number, height, width)
    image.setflags(write=False)
    mask.setflags(write=False)
    return image, mask


def draw_scene(seed: int, number: int, height: int, width: int) -> tuple[UInt8Array, UInt8Array]:
    """Draw one scene.

    Args:
        seed: which city.
        number: which scene of it.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The image, uint8 (H, W, 3) RGB, and the mask, uint8 (H, W) with CamVid's indices.
    """
    return _Scene(np.random.default_rng([seed, number]), height, width).draw()


class _Scene:
    """One scene in the making.

    Coordinates on the ground are x (metres to the right of the camera) and z (metres ahead); y is the height.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.image = np.empty((height, width, 3), np.uint8)
        self.mask = np.full((height, width), SKY, np.uint8)
        self.focal = width * rng.uniform(0.75, 1.1)
        self.camera_height = rng.uniform(1.2, 1.9)
        self.vanishing = np.array([width * rng.uniform(0.35, 0.65), height * rng.uniform(0.38, 0.5)])
        self.road = rng.uniform(3.2, 6.0), rng.uniform(3.2, 6.0)  # half-widths to the left and to the right
        self.sidewalk = rng.uniform(2.0, 4.0), rng.uniform(2.0, 4.0)
        self.sun_left = rng.uniform(0.75, 1.1)  # how bright the facades on either side are
        self.sun_right = rng.uniform(0.75, 1.1)
        self.dusk = rng.uniform(0.65, 1.0)
        self.haze = rng.uniform(0.0, 0.5)
        brightness, blue = rng.uniform(165, 225), rng.uniform(-8, 30)  # sunset to clear day
        self.sky_color = np.array([brightness - blue, brightness - blue * 0.3, brightness + blue])

    def draw(self) -> tuple[UInt8Array, UInt8Array]:
        self._sky()
        self._ground()
        things: list[tuple[float, Callable[[], None]]] = []
        for side in (-1, 1):
            things += self._facades(side) + self._kerb_things(side)
        things += self._traffic()
        for _, paint in sorted(things, key=lambda thing: -thing[0]):
            paint()
        self._light()
        self._own_car()
        return self.image, self.mask

    # Projection and paint

    def project(self, x: float, y: float, z: float) -> Point:
        scale = self.focal / max(z, NEAR)
        return self.vanishing[0] + x * scale, self.vanishing[1] + (self.camera_height - y) * scale

    def color(self, *choices: tuple[int, int, int], spread: float = 18) -> Color:
        base = np.array(choices[self.rng.integers(len(choices))], float)
        return np.clip(base + self.rng.normal(0, spread, 3) + self.rng.normal(0, spread), 0, 255)

    def hazy(self, color: Color, z: float) -> tuple[float, float, float]:
        fade = self.haze * min(1.0, z / FAR)
        r, g, b = (color * self.dusk) * (1 - fade) + self.sky_color * self.dusk * fade
        return float(r), float(g), float(b)

    def fill(self, points: list[Point], color: Color, z: float, label: int | None) -> None:
        """Fill a polygon; without a label only the image is painted (texture)."""
        fixed = np.array(np.clip(np.array(points), -4000, 4000) * (1 << SUBPIXEL_BITS), np.int32)
        cv2.fillPoly(self.image, [fixed], self.hazy(color, z), cv2.LINE_AA, SUBPIXEL_BITS)
        if label is not None:
            cv2.fillPoly(self.mask, [fixed], label, cv2.LINE_8, SUBPIXEL_BITS)

    def ellipse(self, center: Point, axes: Point, color: Color, z: float, label: int | None) -> None:
        one = 1 << SUBPIXEL_BITS
        middle = int(center[0] * one), int(center[1] * one)
        radii = max(1, int(axes[0] * one)), max(1, int(axes[1] * one))
        cv2.ellipse(self.image, middle, radii, 0, 0, 360, self.hazy(color, z), -1, cv2.LINE_AA, SUBPIXEL_BITS)
        if label is not None:
            cv2.ellipse(self.mask, middle, radii, 0, 0, 360, label, -1, cv2.LINE_8, SUBPIXEL_BITS)

    def upright(self, x: float, width: float, bottom: float, top: float, z: float) -> list[Point]:
        """Return a rectangle that faces the camera."""
        corners = (
            (x - width / 2, bottom),
            (x - width / 2, top),
            (x + width / 2, top),
            (x + width / 2, bottom),
        )
        return [self.project(across, up, z) for across, up in corners]

    def patch(self, x: Point, z: Point, color: Color, label: int | None) -> None:
        """Fill a rectangle on the ground."""
        corners = ((x[0], z[0]), (x[0], z[1]), (x[1], z[1]), (x[1], z[0]))
        self.fill([self.project(across, 0, ahead) for across, ahead in corners], color, z[0], label)

    def wall(self, x: float, y: Point, z: Point, color: Color, label: int | None) -> None:
        """Fill a rectangle that stands along the street."""
        corners = ((y[0], z[0]), (y[1], z[0]), (y[1], z[1]), (y[0], z[1]))
        self.fill([self.project(x, up, ahead) for up, ahead in corners], color, z[0], label)

    # What stands where

    def _sky(self) -> None:
        rows = np.linspace(0, 1, self.height)[:, None, None]
        horizon = np.minimum(self.sky_color * self.rng.uniform(1.0, 1.2), 255)
        sky = (self.sky_color * (1 - rows) + horizon * rows) * self.dusk
        if self.rng.random() < 0.6:  # clouds: smooth noise, wider than high
            noise = self.rng.random((5, 9)).astype(np.float32)
            clouds = cv2.resize(noise, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
            sky = sky + np.clip(clouds - 0.5, 0, 1)[..., None] * self.rng.uniform(-90, 110)
        self.image[:] = np.clip(sky, 0, 255)

    def _ground(self) -> None:
        asphalt = self.color((95, 95, 98), (120, 118, 115), (80, 82, 88), (140, 136, 130), spread=8)
        paving = self.color((150, 140, 130), (165, 150, 140), (120, 118, 118), (110, 104, 100), spread=14)
        left, right = self.road
        reach = 0.0, FAR * 4
        self.patch((-300, 300), reach, self.color((110, 105, 95), (90, 110, 70), spread=12), SIDEWALK)
        self.patch((-left - self.sidewalk[0], right + self.sidewalk[1]), reach, paving, SIDEWALK)
        self.patch((-left, right), reach, asphalt, ROAD)
        for x, inward in ((-left, 1), (right, -1)):  # kerb stones, part of the sidewalk
            self.patch((x, x + inward * 0.15), reach, paving * self.rng.uniform(0.7, 1.25), SIDEWALK)
        for z in np.arange(NEAR, 25, self.rng.uniform(1.0, 2.0)):  # joints between the slabs
            for near, far in ((-left - self.sidewalk[0], -left), (right, right + self.sidewalk[1])):
                self.patch((near, far), (z, z + 0.12), paving * 0.6, None)
        white = self.color((215, 215, 205), (200, 190, 140), spread=8)
        if self.rng.random() < 0.8:  # centre line
            middle, gap = (right - left) / 2, self.rng.uniform(2, 6)
            for z in np.arange(NEAR, FAR / 2, 2 * gap):
                self.patch((middle - 0.07, middle + 0.07), (z, z + gap), white, ROAD)
        if self.rng.random() < 0.4:
            for x in (-left + 0.5, right - 0.5):
                self.patch((x - 0.05, x + 0.05), (0, FAR), white, ROAD)
        if self.rng.random() < 0.25:  # zebra crossing
            z = self.rng.uniform(7, 20)
            for x in np.arange(-left + 0.3, right - 0.4, 0.9):
                self.patch((x, x + 0.45), (z, z + 2.5), white, ROAD)
        for _ in range(self.rng.integers(0, 5)):  # shadows, repairs and stains change the look, not the class
            x, z = self.rng.uniform(-left - 2, right + 2), self.rng.uniform(4, 30)
            shade = asphalt * self.rng.uniform(0.55, 0.9)
            self.patch((x, x + self.rng.uniform(0.5, 5)), (z, z + self.rng.uniform(0.4, 6)), shade, None)

    def edge(self, side: int) -> float:
        """Return where the facades begin on a side."""
        return side * (self.road[side > 0] + self.sidewalk[side > 0])

    def _facades(self, side: int) -> list[tuple[float, Callable[[], None]]]:
        sun = self.sun_left if side < 0 else self.sun_right
        things: list[tuple[float, Callable[[], None]]] = []
        z = self.rng.uniform(-6, 2)
        while z < FAR:
            depth = self.rng.uniform(6, 18)
            setback = self.edge(side) + side * self.rng.choice([0.0, 0.0, 2.5])
            kind = self.rng.choice(["house", "house", "house", "house", "trees", "gap"])
            if kind == "house":
                things.append((z + depth, functools.partial(self._house, setback, side, (z, z + depth), sun)))
            elif kind == "trees":
                for ahead in np.arange(max(z, NEAR + 1), z + depth, 2.5):
                    x = setback + side * self.rng.uniform(1, 4)
                    things.append((ahead, functools.partial(self._tree, x, ahead)))
            if kind != "house" or self.rng.random() < 0.25:
                fence = functools.partial(self._fence, self.edge(side), (max(z, NEAR), z + depth))
                things.append((max(z, NEAR) + 0.1, fence))
            z += depth + self.rng.choice([0.0, 0.0, 2.0])
        return things

    def _house(self, x: float, side: int, z: Point, sun: float) -> None:
        z = max(z[0], NEAR), z[1]
        if z[1] <= z[0]:
            return
        height = self.rng.uniform(4, 16)
        wall = self.color(
            (168, 120, 95), (190, 170, 140), (205, 200, 190), (130, 90, 75), (150, 150, 155), (95, 85, 80)
        )
        front = self.upright(x + side * 6, 12, 0, height, z[0])
        self.fill(front, wall * 0.7, z[0], BUILDING)  # the gable that faces the camera
        self.wall(x, (0, height), z, wall * sun, BUILDING)
        if self.rng.random() < 0.5:
            roof = self.color((90, 70, 65), (70, 75, 85), (120, 75, 60))
            self.wall(x, (height, height + self.rng.uniform(0.4, 1.5)), z, roof * sun, BUILDING)
        glass = self.color((60, 70, 85), (120, 140, 160), (35, 38, 45))
        storey, bay = self.rng.uniform(2.6, 3.4), self.rng.uniform(1.8, 3.5)
        if self.rng.random() < 0.4:  # shop front
            self.wall(
                x,
                (0.4, 2.4),
                (z[0] + 0.5, z[1] - 0.5),
                self.color((80, 60, 60), (60, 90, 120), (150, 60, 50)),
                None,
            )
        for up in np.arange(1.0, height - 1.5, storey):
            self.wall(x, (up - 0.5, up - 0.3), z, wall * sun * 0.75, None)
            for ahead in np.arange(z[0] + 0.6, min(z[1] - 0.8, 45), bay):
                self.wall(x, (up, up + 1.5), (ahead, ahead + bay * 0.5), glass, None)

    def _fence(self, x: float, z: Point) -> None:
        if z[1] <= z[0]:
            return
        height = self.rng.uniform(0.9, 1.8)
        color = self.color((110, 80, 55), (60, 62, 62), (150, 150, 145), (70, 95, 70))
        self.wall(x, (0, height), z, color * 0.75, FENCE)
        step = self.rng.uniform(0.25, 0.6)
        for ahead in np.arange(z[0], min(z[1], 25), step):
            self.wall(x, (0, height), (ahead, ahead + step * 0.45), color * 1.15, None)
        self.wall(x, (height * 0.8, height * 0.9), z, color * 0.6, None)

    def _kerb_things(self, side: int) -> list[tuple[float, Callable[[], None]]]:
        kerb, wide = side * self.road[side > 0], self.sidewalk[side > 0]
        things: list[tuple[float, Callable[[], None]]] = []

        def add(paint: Callable[[float, float], None], x: float, z: float) -> None:
            things.append((z, functools.partial(paint, x, z)))

        spacing = self.rng.uniform(9, 20)
        for z in np.arange(self.rng.uniform(4, 12), FAR * 0.4, spacing):
            if self.rng.random() < 0.8:
                add(self._lamp, kerb + side * 0.4, z)
        for _ in range(self.rng.integers(1, 4)):
            add(self._sign, kerb + side * self.rng.uniform(0.3, 0.9), self.rng.uniform(5, 18))
        if self.rng.random() < 0.45:
            for z in np.arange(self.rng.uniform(5, 15), FAR * 0.6, self.rng.uniform(6, 14)):
                add(self._tree, kerb + side * wide * self.rng.uniform(0.3, 0.9), z)
        for _ in range(self.rng.integers(1, 6)):
            add(self._pedestrian, kerb + side * self.rng.uniform(0.3, wide), self.rng.uniform(4, 10))
        if self.rng.random() < 0.6:
            for z in np.arange(self.rng.uniform(4, 14), 45, self.rng.uniform(5.5, 9)):
                if self.rng.random() < 0.4:
                    add(self._car, kerb - side * 1.1, z)
        for _ in range(self.rng.integers(0, 2)):
            add(self._unlabelled, kerb + side * self.rng.uniform(0.3, wide), self.rng.uniform(5, 25))
        return things

    def _traffic(self) -> list[tuple[float, Callable[[], None]]]:
        left, right = self.road
        things: list[tuple[float, Callable[[], None]]] = []
        for _ in range(self.rng.integers(0, 3)):
            x, z = self.rng.uniform(-left + 1, right - 1), self.rng.uniform(9, 50)
            things.append((z, functools.partial(self._car, x, z)))
        for _ in range(self.rng.integers(0, 4)):
            x, z = self.rng.uniform(-left + 0.4, right - 0.4), self.rng.uniform(5, 15)
            things.append((z, functools.partial(self._bicyclist, x, z)))
        if self.rng.random() < 0.5:
            x, z = self.rng.uniform(-left, right), self.rng.uniform(4.5, 11)
            things.append((z, functools.partial(self._pedestrian, x, z)))
        return things

    # Things

    def _tree(self, x: float, z: float) -> None:
        height = self.rng.uniform(4, 9)
        bark = self.color((85, 70, 55), (100, 95, 85), spread=10)
        self.fill(self.upright(x, self.rng.uniform(0.2, 0.5), 0, height * 0.6, z), bark, z, TREE)
        leaves = self.color((70, 100, 45), (95, 115, 60), (55, 75, 40), (120, 110, 60), spread=14)
        scale = self.focal / max(z, NEAR)
        for index in range(9):
            across, up = self.rng.normal(0, 0.9), height * 0.72 + self.rng.normal(0, 0.9)
            radius = self.rng.uniform(0.7, 1.5)
            shade = leaves * self.rng.uniform(0.65, 1.25)
            center = self.project(x + across, up, z)
            self.ellipse(center, (radius * scale, radius * scale * 0.85), shade, z, TREE)
            if index > 3:  # leaves in light and shadow
                self.ellipse(center, (radius * scale * 0.4, radius * scale * 0.3), shade * 1.3, z, None)

    def _post(self, x: float, width: float, height: float, color: Color, z: float) -> None:
        """Paint a round post: lit on one side, dark on the other."""
        self.fill(self.upright(x, width, 0, height, z), color, z, POLE)
        self.fill(self.upright(x - width * 0.2, width * 0.3, 0, height, z), np.minimum(color * 1.5, 255), z, None)
        self.fill(self.upright(x + width * 0.35, width * 0.3, 0, height, z), color * 0.5, z, None)

    def _lamp(self, x: float, z: float) -> None:
        height = self.rng.uniform(4.5, 7)
        color = self.color((70, 75, 75), (120, 122, 120), (50, 70, 60), spread=10)
        self._post(x, 0.3, height, color, z)
        arm = -np.sign(x) * self.rng.uniform(0.6, 1.4)
        self.fill(self.upright(x + arm / 2, abs(arm), height - 0.25, height, z), color, z, POLE)

    def _sign(self, x: float, z: float) -> None:
        height = self.rng.uniform(2.2, 3.0)
        self._post(x, 0.2, height, self.color((120, 122, 120), spread=10), z)
        face = self.color((200, 40, 40), (40, 70, 180), (230, 200, 60), (235, 235, 235), (30, 110, 70), spread=12)
        size = self.rng.uniform(0.8, 1.2)
        scale = self.focal / max(z, NEAR)
        center = self.project(x, height, z)
        if self.rng.random() < 0.5:
            self.ellipse(center, (size / 2 * scale, size / 2 * scale), face, z, SIGN)
            self.ellipse(center, (size / 3 * scale, size / 3 * scale), self.color((235, 235, 235), spread=8), z, None)
        else:
            plate = self.upright(x, size, height - size / 2, height + size * self.rng.uniform(0.3, 0.9), z)
            self.fill(plate, face, z, SIGN)
            self.fill(self.upright(x, size * 0.7, height - 0.06, height + 0.06, z), 255 - face, z, None)

    def _car(self, x: float, z: float) -> None:
        paint = self.color((170, 30, 35), (30, 50, 110), (200, 200, 205), (40, 40, 45), (120, 125, 130), (60, 90, 70))
        tall = self.rng.choice([1.45, 1.45, 1.9])
        length = min(4.2, max(0.0, z - NEAR - 0.3))
        front = z - length
        glass = self.color((50, 55, 65), (90, 105, 120), spread=8)
        inner = x - 0.85 if x > 0 else x + 0.85  # the flank that the camera sees
        self.wall(inner, (0.25, 0.85), (front, z), paint * 0.75, CAR)
        self.wall(inner * 0.97, (0.85, tall), (front + 0.5 * (length > 1), z - 0.5 * (length > 1)), glass, CAR)
        for ahead in (front + 0.7, z - 0.8):
            if length > 2:
                scale = self.focal / max(ahead, NEAR)
                hub = self.project(inner, 0.32, ahead)
                self.ellipse(hub, (0.18 * scale, 0.32 * scale), self.color((25, 25, 28), spread=4), ahead, CAR)
        self.fill(self.upright(x, 1.75, 0.3, 0.9, front), paint, front, CAR)
        self.fill(self.upright(x, 1.45, 0.9, tall, front), paint * 0.9, front, CAR)
        self.fill(self.upright(x, 1.25, 0.95, tall - 0.12, front), glass, front, None)
        for across in (-0.65, 0.65):
            self.fill(
                self.upright(x + across, 0.25, 0.05, 0.35, front),
                self.color((25, 25, 28), spread=4),
                front,
                CAR,
            )
            lamp = self.color((190, 30, 25), (235, 230, 210), spread=10)
            self.fill(self.upright(x + across, 0.3, 0.62, 0.76, front), lamp, front, None)

    def _person(self, x: float, z: float, seat: float, label: int) -> None:
        skin = self.color((205, 160, 130), (140, 95, 70), (90, 60, 45), spread=10)
        coat = self.color((70, 60, 80), (170, 40, 45), (40, 65, 150), (225, 190, 60), (200, 90, 40), (150, 60, 130))
        legs = self.color((45, 50, 70), (40, 40, 42), (120, 105, 85))
        tall = self.rng.uniform(1.5, 1.9)
        hip, shoulder = seat + tall * 0.48, seat + tall * 0.84
        stride = self.rng.uniform(0.05, 0.28)
        for across in (-stride, stride):
            leg = [self.project(x + dx, y, z) for dx, y in
                   ((across - 0.08, seat), (-0.12, hip), (0.12, hip), (across + 0.08, seat))]  # fmt: skip
            self.fill(leg, legs, z, label)
        self.fill(self.upright(x, 0.55, hip - 0.05, shoulder, z), coat, z, label)
        scale = self.focal / max(z, NEAR)
        self.ellipse(self.project(x, seat + tall * 0.93, z), (0.14 * scale, 0.17 * scale), skin, z, label)

    def _pedestrian(self, x: float, z: float) -> None:
        self._person(x, z, 0.0, PEDESTRIAN)

    def _bicyclist(self, x: float, z: float) -> None:
        scale = self.focal / max(z, NEAR)
        rubber = self.color((30, 30, 32), spread=6)
        turned = self.rng.uniform(0.45, 1.0)  # seen at an angle or from the side
        for across in (-0.5 * turned, 0.5 * turned):
            hub = self.project(x + across, 0.34, z)
            self.ellipse(hub, (max(0.08, 0.34 * turned) * scale, 0.34 * scale), rubber, z, BICYCLIST)
            self.ellipse(hub, (0.24 * turned * scale, 0.24 * scale), self.color((120, 118, 115), spread=8), z, None)
        self.fill(
            self.upright(x, max(0.1, turned), 0.5, 0.75, z),
            self.color((160, 40, 40), (40, 90, 160)),
            z,
            BICYCLIST,
        )
        self._person(x, z, 0.35, BICYCLIST)

    def _unlabelled(self, x: float, z: float) -> None:
        """Paint a bin, a box or a cart: things that the data set does not name."""
        color = self.color((60, 90, 60), (90, 80, 75), (150, 120, 60), (40, 45, 55))
        self.fill(self.upright(x, self.rng.uniform(0.4, 0.9), 0, self.rng.uniform(0.6, 1.3), z), color, z, VOID)

    # The camera

    def _light(self) -> None:
        """Add texture, a colour cast, blur and sensor noise."""
        rng = self.rng
        coarse = rng.normal(0, 1, (self.height // 8, self.width // 8)).astype(np.float32)
        grain = cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        fine = np.empty((self.height, self.width), np.float32)
        cv2.setRNGSeed(int(rng.integers(1 << 31)))  # OpenCV's noise is several times faster than numpy's
        cv2.randn(fine, 0, 1)
        # Leaves are rougher than walls, and both rougher than the sky.
        roughness = np.array([1, 5, 4, 4, 5, 16, 3, 7, 3, 4, 4, 4], np.float32)[self.mask]
        texture = grain * roughness + fine * (roughness * 0.6 + rng.uniform(1, 4))
        light = np.array([rng.uniform(0.85, 1.1), rng.uniform(0.9, 1.05), rng.uniform(0.85, 1.12)], np.float32)
        image = (self.image.astype(np.float32) + texture[..., None]) * light
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 0.9))
        self.image = np.clip(image, 0, 255).astype(np.uint8)

    def _own_car(self) -> None:
        """Paint the bonnet of the camera's car, which belongs to no class."""
        if self.rng.random() < 0.3:
            middle, top = self.width * self.rng.uniform(0.4, 0.6), self.height * self.rng.uniform(0.93, 0.98)
            axes = self.width * 0.45, self.height - top
            self.ellipse((middle, self.height), axes, self.color((40, 42, 48), (120, 120, 125)), 0, VOID)
