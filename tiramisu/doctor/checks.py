"""What is wrong with a data set, in plain words, and what to do about it."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from tiramisu.data.folder import FolderIndex, evenly
from tiramisu.data.masks import Encoding, describe
from tiramisu.data.splits import find_lists
from tiramisu.data.statistics import suggest_weights
from tiramisu.data.transforms import MIN_SIZE
from tiramisu.doctor.survey import Fact, Survey, find_lookalikes, survey_folder
from tiramisu.errors import DataError

Level = Literal["error", "warning", "note"]

LOOKALIKE_BITS = 4  # of 64
SHIFT_GAIN = 1.15  # how much better the masks must fit elsewhere
MIN_SHIFTED = 5  # images whose shift can be told, before their median means anything
FEW = 5
QUICK_IMAGES = 12  # of each split


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        level: an error keeps training from starting or makes it worthless, a warning costs quality, a note is for
            information.
        title: what it is, in a few words.
        text: what it means here, and what to do.
        facts: the images that it is about.
    """

    level: Level
    title: str
    text: str
    facts: Sequence[Fact] = ()


Check = Callable[[Survey], Iterator[Finding]]


def run_checks(survey: Survey) -> list[Finding]:
    """Return what was found, errors first."""
    order: list[Level] = ["error", "warning", "note"]
    findings = [finding for check in CHECKS for finding in check(survey)]
    return sorted(findings, key=lambda finding: order.index(finding.level))


def check_reading(survey: Survey) -> Iterator[Finding]:
    """Say how the folder is understood."""
    index = survey.index
    kinds = {"file": f"masks with {_encoding_words(index.encoding)}", "classes": "one mask per class",
             "labelme": "LabelMe's polygons", "coco": "COCO's annotations"}  # fmt: skip
    splits = ", ".join(f"{len(pairs)} {split}" for split, pairs in index.splits.items())
    how = "drawn at random, always the same"
    if find_lists(index.root):
        how = "from list files"
    elif set(index.listing.pairs) - {""}:
        how = "from folders"
    names = ", ".join(index.classes.labels.names)
    text = f"Layout {index.listing.layout}, {kinds[index.listing.kind]}. Splits {how}: {splits}. Classes: {names}."
    if index.inferred:
        text += " They were guessed; write classes.yaml to name them."
    yield Finding("note", "how it is read", text)


def _encoding_words(encoding: str) -> str:
    return {"index": "a class index per pixel", "color": "a colour per class", "binary": "0 and 255"}[encoding]


def check_partners(survey: Survey) -> Iterator[Finding]:
    """Find images without masks and masks without images."""
    listing = survey.index.listing
    for kind, other, alone in (
        ("image", "mask", listing.lonely_images), ("mask", "image", listing.lonely_masks),
    ):  # fmt: skip
        if alone:
            yield Finding(
                "warning", f"{kind}s without {other}s",
                f"{_count(alone, kind)} without {other} {_verb(alone, 'is', 'are')} not used: {_some(alone)}. Add the "
                f"{other}s under the same names, or remove them.",
            )  # fmt: skip


def check_outside(survey: Survey) -> Iterator[Finding]:
    """Find images beside the folders of splits."""
    outside = survey.index.listing.outside
    if outside:
        yield Finding(
            "warning", "images outside of the splits",
            f"{_count(outside, 'image')} {_verb(outside, 'lies', 'lie')} in none of the folders train, val and "
            f"test and {_verb(outside, 'is', 'are')} not used: {_some(outside)}.",
        )  # fmt: skip


def check_readable(survey: Survey) -> Iterator[Finding]:
    """Find files that cannot be read."""
    for kind in ("image", "mask"):
        bad = [fact for fact in survey.facts if getattr(fact, f"{kind}_error")]
        if bad:
            yield Finding(
                "error", f"unreadable {kind}s",
                f"{_count(bad, kind)} cannot be used: {'; '.join(getattr(fact, f'{kind}_error') for fact in bad[:FEW])}"
                f"{_more(bad)}.",
                bad,
            )  # fmt: skip


def check_sizes(survey: Survey) -> Iterator[Finding]:
    """Find images and masks that differ in size, and images that are too small."""
    readable = [fact for fact in survey.facts if not fact.image_error and not fact.mask_error]
    differing = [fact for fact in readable if fact.image_size != fact.mask_size]
    if differing:
        first = differing[0]
        same_shape = all(_same_shape(fact) for fact in differing)
        remedy = "--fix enlarges or shrinks these masks" if same_shape else "make them again from the right images"
        yield Finding(
            "error", "sizes differ",
            f"{_count(differing, 'mask')} {_verb(differing, 'differs', 'differ')} in size from the image: "
            f"{first.pair.mask[0]} is {first.mask_size[0]} x {first.mask_size[1]}, {first.pair.image} is "
            f"{first.image_size[0]} x {first.image_size[1]}{_more(differing, 1)}; {remedy}.",
            differing,
        )  # fmt: skip
    small = [fact for fact in readable if min(fact.image_size) < MIN_SIZE]
    if small:
        yield Finding(
            "error", "images too small",
            f"{_count(small, 'image')} {_verb(small, 'is', 'are')} less than {MIN_SIZE} pixels high or wide: "
            f"{_some([fact.pair.image for fact in small])}; remove or enlarge them with their masks.",
            small,
        )  # fmt: skip
    sizes = Counter(fact.image_size for fact in readable)
    if len(sizes) > 1:
        heights, widths = ([size[axis] for size in sizes] for axis in (0, 1))
        yield Finding(
            "note", "several sizes",
            f"Images have {len(sizes)} sizes, from {min(heights)} x {min(widths)} to {max(heights)} x {max(widths)} "
            f"pixels. Crops are padded where images are smaller; evaluation takes one image at a time.",
        )  # fmt: skip


def _same_shape(fact: Fact) -> bool:
    (height, width), (mask_height, mask_width) = fact.image_size, fact.mask_size
    return abs(height * mask_width - width * mask_height) <= 0.02 * height * mask_width


def check_orientation(survey: Survey) -> Iterator[Finding]:
    """Find photos that EXIF turns."""
    turned = [fact for fact in survey.facts if fact.turned]
    if turned:
        yield Finding(
            "note", "photos turned by EXIF",
            f"{_count(turned, 'mask')} {_verb(turned, 'fits', 'fit')} the photo as it is stored, not as it is seen, "
            f"and {_verb(turned, 'is', 'are')} turned with it: {_names(turned)}. --fix writes both upright.",
            turned,
        )  # fmt: skip
    unsure = [fact for fact in survey.facts if fact.orientation > 1 and not fact.turned and fact.good
              and (fact.orientation < 5 or fact.image_size[0] == fact.image_size[1])]  # fmt: skip
    if unsure:
        yield Finding(
            "warning", "photos turned by EXIF, masks perhaps not",
            f"{_count(unsure, 'photo')} {_verb(unsure, 'is', 'are')} turned or mirrored when seen, and the mask fits "
            f"both ways: {_names(unsure)}. It is taken as it is; if it was drawn on the stored pixels, write the "
            f"photos upright first.",
            unsure,
        )  # fmt: skip


def check_encodings(survey: Survey) -> Iterator[Finding]:
    """Find masks of another kind than the rest."""
    expected = survey.index.encoding
    for kind in ("index", "color"):
        odd = [fact for fact in survey.facts if fact.encoding == kind and kind != expected]
        if odd:
            yield Finding(
                "error", "masks of different kinds",
                f"{_count(odd, 'mask')} {_verb(odd, 'has', 'have')} {_encoding_words(kind)} (mode {odd[0].mode}), the "
                f"others {_encoding_words(expected)}: {_names(odd)}. Convert them, or give --data.folder.encoding "
                f"{kind} if the others are wrong.",
                odd,
            )  # fmt: skip


def check_values(survey: Survey) -> Iterator[Finding]:
    """Find values and colours that mean no class."""
    odd_kind = {id(fact) for finding in check_encodings(survey) for fact in finding.facts}
    bad = [fact for fact in survey.facts if fact.unknown and id(fact) not in odd_kind]
    if not bad:
        return
    index = survey.index
    values = sorted({value for fact in bad for value in fact.unknown})
    classes = len(index.classes.labels)
    kind = "colours" if index.encoding == "color" else "values"
    if len(values) > 32:
        remedy = ("such a number comes from JPEG or from resizing with smoothing; export the masks again as PNG, "
                  "resized with nearest neighbour")  # fmt: skip
    elif index.encoding == "color":
        remedy = "add these colours to their classes in classes.yaml, or to a class named void"
    elif values == [classes]:
        remedy = (f"if that is void, write ignore: {classes} in classes.yaml; if classes count from 1, give each its "
                  f"value: {{name: {index.classes.labels.names[0]}, value: 1}}")  # fmt: skip
    else:
        remedy = "add them to classes.yaml as classes (value: N), or as ignore: [N, M]"
    yield Finding(
        "error", f"unknown {kind}",
        f"{_count(bad, 'mask')} {_verb(bad, 'has', 'have')} {describe(values, index.encoding)}, which "
        f"{_verb(values, 'means', 'mean')} no class: "
        f"{_names(bad)}; {remedy}. --fix makes them void.",
        bad,
    )  # fmt: skip


def check_classes(survey: Survey) -> Iterator[Finding]:
    """Find classes without pixels, and say how much there is of each."""
    labels, total = survey.index.classes.labels, survey.counts()
    if not total.sum():
        if any(fact.good for fact in survey.facts):
            yield Finding("error", "only void", "No pixel of any mask belongs to a class; check classes.yaml.")
        return
    for split, consequence in (
        ("train", "they cannot be learned"), ("val", "their IoU cannot be measured"),
        ("test", "their IoU cannot be measured"),
    ):  # fmt: skip
        if split not in survey.index.splits:
            continue
        counts = survey.counts(split)
        absent = [name for name, count in zip(labels.names, counts, strict=True) if not count]
        if absent:
            yield Finding(
                "warning", f"classes absent in {split}",
                f"No {split} image has {', '.join(absent)}: {consequence}. Add images, choose other splits, or remove "
                f"the class.",
            )  # fmt: skip
    train = survey.counts("train") if survey.counts("train").sum() else total
    weights = suggest_weights(train)
    rows = zip(labels.names, 100 * train / train.sum(), weights, strict=True)
    shares = ", ".join(f"{name} {share:.3g} %" for name, share, _ in rows)
    text = f"Shares in train: {shares}. Suggested --model.class_weights {weights} (what auto takes)."
    void = sum(fact.void for fact in survey.facts)
    share = void / max(void + int(total.sum()), 1)
    if share > 0.001:
        text += f" {100 * share:.1f} % of all pixels are void."
    yield Finding("note", "class shares", text)
    if share > 0.5:
        yield Finding("warning", "mostly void", f"{100 * share:.0f} % of all pixels are void: little is left to learn "
                      f"from; check whether a value is missing in classes.yaml.")  # fmt: skip


def check_duplicates(survey: Survey) -> Iterator[Finding]:
    """Find images that are in several splits, or nearly so."""
    by_split = {split: [fact for fact in survey.facts if fact.split == split] for split in survey.index.splits}
    train = by_split.get("train", [])
    for split in ("val", "test"):
        alike = find_lookalikes(by_split.get(split, []), train, LOOKALIKE_BITS)
        if not alike:
            continue
        same = [pair for pair in alike if pair[0].digest == pair[1].digest]
        kind = f"{len(same)} exactly, the others nearly" if same else "nearly"
        examples = "; ".join(f"{fact.pair.image} and {other.pair.image}" for fact, other in alike[:FEW])
        yield Finding(
            "warning", f"{split} images that are also in train",
            f"{len(alike)} of {len(by_split[split])} {split} images look like one of train ({kind}): {examples}"
            f"{_more(alike)}. Scores on {split} will flatter; keep such images together with --data.folder.groups, a "
            f"pattern of what their names share, or with list files.",
            [fact for pair in alike for fact in pair],
        )  # fmt: skip
    first: dict[str, Fact] = {}
    repeated = []
    for fact in train:
        if fact.digest and first.setdefault(fact.digest, fact) is not fact:
            repeated.append((first[fact.digest], fact))
    if repeated:
        examples = "; ".join(f"{one.pair.image} and {two.pair.image}" for one, two in repeated[:FEW])
        yield Finding(
            "note", "repeated images",
            f"{_count(repeated, 'image')} of train {_verb(repeated, 'is', 'are')} there twice: {examples}"
            f"{_more(repeated)}.",
            [fact for pair in repeated for fact in pair],
        )  # fmt: skip


def check_masks(survey: Survey) -> Iterator[Finding]:
    """Find masks that hardly can be right."""
    good = [fact for fact in survey.facts if fact.good]
    empty = [fact for fact in good if not fact.counts.sum()]
    if empty:
        yield Finding(
            "warning", "masks of void only",
            f"{_count(empty, 'mask')} {_verb(empty, 'has', 'have')} no class anywhere: {_names(empty)}; nothing is "
            f"learned from them.",
            empty,
        )  # fmt: skip
    single = [fact for fact in good if np.count_nonzero(fact.counts) == 1 and not fact.void]
    if single and len(survey.index.classes.labels) > 1:
        level: Level = "warning" if len(single) < 0.5 * len(good) or len(single) == len(good) else "note"
        yield Finding(
            level, "masks of one class only",
            f"{_count(single, 'mask')} {_verb(single, 'consists', 'consist')} of a single class: {_names(single)}. "
            f"Right for images without anything in them; else the annotation was not saved.",
            single,
        )  # fmt: skip
    telling = [fact for fact in good if fact.shift_gain > SHIFT_GAIN and max(map(abs, fact.shift)) >= 2]
    bordered = [fact for fact in good if np.count_nonzero(fact.counts) > 1]
    if len(telling) >= MIN_SHIFTED and len(telling) > 0.5 * len(bordered):
        down, right = (int(np.median([fact.shift[axis] for fact in telling])) for axis in (0, 1))
        spread = np.median([abs(fact.shift[0] - down) + abs(fact.shift[1] - right) for fact in telling])
        if max(abs(down), abs(right)) >= 2 and spread <= 2:
            yield Finding(
                "warning", "masks are shifted",
                f"Borders in {len(telling)} of {len(bordered)} masks fit the edges in their images better when moved: "
                f"the masks seem to lie {_direction(down, right)} of where they should. Look at the pictures, and "
                f"export them again.",
                telling,
            )  # fmt: skip


def _direction(down: int, right: int) -> str:
    words = []
    if down:
        words.append(f"{abs(down)} pixels {'below' if down > 0 else 'above'}")
    if right:
        words.append(f"{abs(right)} pixels {'right' if right > 0 else 'left'}")
    return " and ".join(words)


def check_splits(survey: Survey) -> Iterator[Finding]:
    """Find splits that are too small to mean anything."""
    sizes = {split: len(pairs) for split, pairs in survey.index.splits.items()}
    if "train" not in sizes or not sizes["train"]:
        yield Finding("error", "nothing to train on", "No image is in the split train; name its folder or list train.")
    small = [f"{split} {count}" for split, count in sizes.items() if split != "train" and count < 5]
    if small:
        yield Finding("note", "small splits", f"Scores on so few images say little: {', '.join(small)}.")


CHECKS: tuple[Check, ...] = (
    check_reading, check_partners, check_outside, check_readable, check_sizes, check_orientation, check_encodings,
    check_values, check_masks, check_duplicates, check_splits, check_classes,
)  # fmt: skip

# What the first look before training asks: a few files tell.
QUICK_CHECKS: tuple[Check, ...] = (
    check_partners, check_outside, check_readable, check_sizes, check_encodings, check_values,
)  # fmt: skip


def quick_check(index: FolderIndex) -> list[str]:
    """Look at a few images before training; the whole check takes minutes where there are many.

    Returns:
        Warnings, one line each.

    Raises:
        DataError: training would fail or be worthless.
    """
    pairs = [(split, pair) for split, members in index.splits.items() for pair in evenly(members, QUICK_IMAGES)]
    survey = survey_folder(index, pairs)
    warnings = []
    for finding in (finding for check in QUICK_CHECKS for finding in check(survey)):
        if finding.level == "error":
            raise DataError(f"{finding.text} For all there is to mend: python -m tiramisu.check_data {index.root}")
        if finding.level == "warning":
            warnings.append(f"{finding.title}: {finding.text}")
    return warnings


def why_unusable(fact: Fact, encoding: Encoding) -> str:
    """Return why a repaired copy cannot have this image; empty where it can."""
    if fact.image_error or fact.mask_error:
        return fact.image_error or fact.mask_error
    if fact.encoding not in (None, encoding):
        return "the mask is of another kind than the others"
    if fact.image_size != fact.mask_size and not _same_shape(fact):
        return "image and mask differ in shape"
    return f"it is smaller than {MIN_SIZE} pixels" if min(fact.image_size) < MIN_SIZE else ""


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _verb(items: Sequence[object], one: str, many: str) -> str:
    return one if len(items) == 1 else many


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + _more(names)


def _names(facts: Sequence[Fact]) -> str:
    return _some([fact.pair.image if fact.pair.mask[0].endswith(".json") else fact.pair.mask[0] for fact in facts])


def _more(items: Sequence[object], shown: int = FEW) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""
