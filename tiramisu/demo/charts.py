"""Charts for Streamlit's vega_lite_chart, in the colours of the classes."""

from typing import Any

from tiramisu.labels import LabelSet
from tiramisu.visualize import hex_color

AREA_CHART = {
    "mark": {"type": "bar", "cornerRadiusEnd": 2, "stroke": "gray", "strokeWidth": 0.5},
    "encoding": {
        "x": {"field": "Area (%)", "type": "quantitative"},
        "y": {"field": "Class", "type": "nominal", "sort": None, "title": None},
        "color": {"field": "Colour", "type": "nominal", "scale": None},
    },
}


def areas_over_time(labels: LabelSet, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the chart of a video: a line for each class, in its colour."""
    shown = {row["Class"] for row in rows}
    colors = {name: hex_color(color) for name, color in zip(labels.names, labels.palette, strict=True) if name in shown}
    legend = {"orient": "bottom", "columns": 3, "title": None}
    return {
        "mark": {"type": "line", "strokeWidth": 2.5},
        "encoding": {
            "x": {"field": "Seconds", "type": "quantitative"},
            "y": {"field": "Area (%)", "type": "quantitative"},
            "color": {
                "field": "Class", "type": "nominal", "legend": legend,
                "scale": {"domain": list(colors), "range": list(colors.values())},
            },
            "tooltip": [{"field": "Class"}, {"field": "Seconds"}, {"field": "Area (%)", "format": ".1f"}],
        },
    }  # fmt: skip
