"""What the viewer in the browser is sent; viewer.js draws it, so that opacity, classes and zoom need no server.

Streamlit has no part that compares pictures under one zoom, names the class under the pointer or turns classes off, and
third-party ones do one of these each, with a round trip to the server for every change. Hence a component of our own.
"""

from importlib import resources
from typing import Any, Literal

import cv2

from tiramisu.arrays import UInt8Array
from tiramisu.demo.gallery import Result
from tiramisu.labels import LabelSet
from tiramisu.visualize import data_url

View = Literal["overlay", "compare", "grid", "image", "mask", "uncertainty"]
VIEWS: tuple[View, ...] = ("overlay", "compare", "grid", "image", "mask", "uncertainty")
DEFAULT_OPACITY = 0.55


def asset(name: str) -> str:
    """Return the text of viewer.html, viewer.css or viewer.js."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def viewer_data(image: UInt8Array, result: Result, labels: LabelSet, side: int) -> dict[str, Any]:
    """Return the picture and its maps for the viewer, in values that JSON knows.

    Args:
        image: uint8 (H, W, 3) RGB.
        result: of the image.
        labels: the classes in the colours to draw.
        side: maps are sent with at most so many pixels in height and width.
    """
    scale = min(1.0, side / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    maps = {"mask": _shrink(result.read("mask"), size), "confidence": _shrink(result.read("confidence"), size)}
    if result.uncertainty is not None:
        maps["uncertainty"] = _shrink(result.read("uncertainty"), size)
    areas = result.areas
    present = sorted((name for name in labels.names if areas[name] > 0), key=lambda name: -areas[name])
    return {
        "picture": data_url(shrunk, "JPEG", quality=90),
        **{kind: data_url(values, "PNG", compress_level=1) for kind, values in maps.items()},
        "height": result.height,
        "width": result.width,
        "name": result.picture.name,
        "alt": describe(result, present),
        "classes": [
            {"index": index, "name": name, "color": list(labels.palette[index]), "share": areas[name]}
            for index, name in enumerate(labels.names)
        ],
    }


def describe(result: Result, present: list[str]) -> str:
    """Return a text for those who do not see the picture: the largest classes and their shares."""
    areas = result.areas
    largest = ", ".join(f"{name} {100 * areas[name]:.0f} %" for name in present[:5])
    return f"Segmentation of {result.picture.name}: {largest or 'nothing'}"


def read_settings(query: dict[str, str], labels: LabelSet) -> dict[str, Any]:
    """Return the viewer's settings from the page's address; what makes no sense there is ignored."""
    settings: dict[str, Any] = {"opacity": DEFAULT_OPACITY, "view": VIEWS[0], "hidden": []}
    opacity, view, hidden = query.get("opacity", ""), query.get("view", ""), query.get("hidden", "")
    if opacity.isdecimal() and len(opacity) <= 3 and int(opacity) <= 100:
        settings["opacity"] = int(opacity) / 100
    if view in VIEWS:
        settings["view"] = view
    names = {name.casefold(): index for index, name in enumerate(labels.names)}
    settings["hidden"] = sorted({names[name.casefold()] for name in hidden.split(",") if name.casefold() in names})
    return settings


def write_settings(settings: dict[str, Any], labels: LabelSet) -> dict[str, str]:
    """Return what `read_settings` reads, without what is as it always is."""
    query = {}
    if round(100 * settings["opacity"]) != round(100 * DEFAULT_OPACITY):
        query["opacity"] = str(round(100 * settings["opacity"]))
    if settings["view"] != VIEWS[0]:
        query["view"] = settings["view"]
    if settings["hidden"]:
        query["hidden"] = ",".join(labels.names[index] for index in settings["hidden"] if index < len(labels))
    return query


def _shrink(values: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    if size == values.shape[::-1]:
        return values
    return cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT)
