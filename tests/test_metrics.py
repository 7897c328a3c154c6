import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiramisu.labels import LabelSet
from tiramisu.metrics import confusion_matrix, format_table, scores_from_confusion


def labels_of(classes: int, void: int) -> LabelSet:
    return LabelSet(tuple(f"class {i}" for i in range(classes)), tuple((i, i, i) for i in range(classes)), void)


def reference_scores(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, void: int) -> tuple[list[float], float]:
    """Pixel by pixel, straight from the definition."""
    intersection, union, present = [0] * classes, [0] * classes, [False] * classes
    right = scored = 0
    for truth, prediction in pairs:
        for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if t == void:
                continue
            scored += 1
            right += t == p
            present[t] = True
            if t == p:
                intersection[t] += 1
                union[t] += 1
            else:
                union[t] += 1
                union[p] += 1
    iou = [i / u if here else math.nan for i, u, here in zip(intersection, union, present, strict=True)]
    return iou, right / scored if scored else math.nan


@settings(max_examples=60, deadline=None)
@given(data=st.data(), classes=st.integers(2, 6), void_is_next=st.booleans(), images=st.integers(1, 4))
def test_scores_agree_with_the_definition(data, classes: int, void_is_next: bool, images: int) -> None:
    void = classes if void_is_next else 255
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    used = rng.integers(1, classes + 1)  # classes above may be absent
    values = np.append(np.arange(used), void)
    pairs = [(rng.choice(values, (7, 9)), rng.integers(0, classes, (7, 9))) for _ in range(images)]
    metric = confusion_matrix(labels_of(classes, void))
    for truth, prediction in pairs:
        metric.update(torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None])
    scores = scores_from_confusion(metric.compute())
    iou, accuracy = reference_scores(pairs, classes, void)
    np.testing.assert_allclose(scores.iou, iou)
    np.testing.assert_allclose(scores.accuracy, accuracy)
    expected = [value for value in iou if not math.isnan(value)]
    np.testing.assert_allclose(scores.mean_iou, np.mean(expected) if expected else math.nan)


def test_pools_over_the_set_instead_of_averaging_images() -> None:
    labels = labels_of(2, 255)
    metric = confusion_matrix(labels)
    metric.update(torch.zeros(1, 10, 10, dtype=torch.long), torch.zeros(1, 10, 10, dtype=torch.long))
    metric.update(torch.zeros(1, 10, 10, dtype=torch.long), torch.ones(1, 10, 10, dtype=torch.long))
    assert scores_from_confusion(metric.compute()).iou == (
        0.5,
        0.0,
    )  # per image it would be (1 + 0) / 2 and n/a


def test_table_reads_like_the_papers() -> None:
    labels = labels_of(2, 255)
    scores = scores_from_confusion(torch.tensor([[90, 10], [0, 0]]))
    table = format_table([("val", scores)], labels)
    assert [line.split()[-1] for line in table.splitlines() if line[0] != "-"] == [
        "val",
        "90.0",
        "n/a",
        "90.0",
        "90.0",
    ]
    assert scores.to_dict(labels)["iou"]["class 1"] is None


@pytest.mark.parametrize(("names", "void"), [((), 0), (("a", "b"), 1)])
def test_label_sets_reject_an_ignore_index_among_the_classes(names: tuple[str, ...], void: int) -> None:
    if names:
        with pytest.raises(ValueError, match="ignore_index"):
            LabelSet(names, ((0, 0, 0),) * len(names), void)
    else:
        with pytest.raises(ValueError, match="colours"):
            LabelSet(("a",), (), void)
