"""The app: `streamlit run app.py`. Layout and state only; what it shows comes from tiramisu.demo."""

import io
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image
from streamlit.delta_generator import DeltaGenerator

from tiramisu.allocator import limit_arenas
from tiramisu.data.streets import draw_scene
from tiramisu.demo import viewer
from tiramisu.demo.assessment import assess, find_partner, read_truth
from tiramisu.demo.charts import AREA_CHART, areas_over_time
from tiramisu.demo.clips import ClipProgress, segment_clip
from tiramisu.demo.gallery import Disk, Gallery, Picture, Result, Setup, sweep
from tiramisu.demo.limits import LIMITS
from tiramisu.demo.models import Model, find_models
from tiramisu.demo.package import VERDICTS, doubt, relabelling_list, write_package
from tiramisu.demo.quick_training import QuickTraining
from tiramisu.demo.service import Queues, Service, Step
from tiramisu.errors import TiramisuError
from tiramisu.inference.engines import EngineName, is_installed
from tiramisu.inference.inputs import VIDEO_SUFFIXES
from tiramisu.inference.segmenter import Options, Segmenter
from tiramisu.labels import LabelSet
from tiramisu.visualize import error_map, hex_color, with_safe_colors
from tiramisu.weights import content_hash

RUNS = Path(os.environ.get("TIRAMISU_RUNS", "runs"))
SAMPLES = 4
SAMPLE_SEED, SAMPLE_SIZE = 2024, (240, 320)
STEP_SECONDS = 0.7  # after which new results are shown
LOOK_SECONDS = 0.05  # between two looks at how far an image is
SOURCES = ("Photos", "Camera", "Video")
# Streamlit leaves a hand's breadth above the page; a long heading needs less height in smaller type.
STYLE = """<style>
.stMainBlockContainer { padding-top: 3rem; }
h1 { font-size: clamp(1.3rem, 2.4vw, 1.9rem) !important; }
</style>"""
ENGINES: dict[EngineName, str] = {
    "auto": "Fastest", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "torch": "PyTorch",
}  # fmt: skip

SHOW = st.components.v2.component(
    "tiramisu_viewer", html=viewer.asset("viewer.html"), css=viewer.asset("viewer.css"), js=viewer.asset("viewer.js")
)


# ---- shared by all visitors


@st.cache_resource
def queues() -> Queues:
    """Return what all visitors of this machine wait in."""
    limit_arenas()
    return Queues()


@st.cache_resource
def disk() -> Disk:
    """Return the room for everybody's files."""
    sweep()
    return Disk()


@st.cache_resource(max_entries=3, show_spinner="Loading the model …")
def load_service(path: str, engine: EngineName, changed: float) -> tuple[Service, str]:
    """Load a model once for everybody; `changed` makes a retrained one another model."""
    del changed
    return Service(Segmenter.load(path, engine=engine), queues()), content_hash(Path(path))


@st.cache_resource
def quick_training() -> QuickTraining:
    """Return the one training that can run."""
    return QuickTraining(RUNS)


@st.cache_data(show_spinner=False, max_entries=SAMPLES)
def sample(number: int) -> bytes:
    """Draw a sample scene as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(draw_scene(SAMPLE_SEED, number, *SAMPLE_SIZE)[0]).save(buffer, "PNG")
    return buffer.getvalue()


# ---- of one visitor


@st.cache_resource(scope="session", show_spinner=False, on_release=Gallery.close)
def gallery() -> Gallery:
    """Return the visitor's pictures and results; they go when the visitor does."""
    return Gallery(disk=disk())


def small(text: str) -> None:
    """Write a line in small type; st.caption's grey is too pale to read for some."""
    st.markdown(f":small[{text}]")


def plain(text: str) -> str:
    """Return text, such as the name of a file, so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>$:~])", r"\\\1", text)


def state(name: str, default: Any) -> Any:
    """Return a value of this visit."""
    return st.session_state.setdefault(name, default)


# ---- parts of the page


def settings_part(models: list[Model]) -> tuple[Service, Setup, LabelSet]:
    """Show the settings in the sidebar; return what they choose."""
    by_name = {model.name: model for model in models}
    with st.sidebar:
        st.header("Settings")
        name = st.selectbox(
            "Model", list(by_name), format_func=lambda key: by_name[key].title, key="model", bind="query-params"
        )
        model = by_name.get(name, models[0])
        with st.expander("About this model"):
            st.table({"Property": list(model.facts), "Value": list(model.facts.values())} if model.facts else {})
        usable = [engine for engine in ENGINES if engine in ("auto", "torch") or is_installed(engine)]
        engine = st.selectbox("Engine", usable, format_func=ENGINES.__getitem__, key="engine", bind="query-params")
        flip = st.toggle(
            "Average with the mirrored image", key="flip", bind="query-params",
            help="Flip test-time augmentation: a little better, twice the time.",
        )  # fmt: skip
        dropout = st.toggle(
            "Uncertainty by MC-dropout", key="dropout", bind="query-params", disabled=not model.can_drop,
            help="Eight passes with dropout in PyTorch instead of one without, which take eight times as long or more. "
            "Shows what the network has not learned."
            if model.can_drop else "This model was trained without dropout.",
        )  # fmt: skip
        safe = st.toggle("Colour-blind-safe colours", key="safe", bind="query-params")
    dropout = dropout and model.can_drop
    if dropout:
        engine = "torch"
    options = Options("flip" if flip else "none", "mc-dropout" if dropout else "entropy", confidence=True)
    changed = max(file.stat().st_mtime for file in model.path.iterdir())
    service, weights = load_service(str(model.path), engine, changed)
    with st.sidebar:
        small(f"Runs with {service.description}. {model.warning}")
    labels = with_safe_colors(service.labels) if safe else service.labels
    return service, Setup(weights, engine, options), labels


def training_part() -> None:
    """Offer to train a model, where there is none."""
    st.info(
        "There are no weights yet. Train a small model on built-in street scenes: a few minutes, once for everybody."
    )
    training_progress()


@st.fragment(run_every=1.0)
def training_progress() -> None:
    """Show how far the training is."""
    training = quick_training()
    state_, share, text = training.progress()
    if state_ == "done" and find_models(RUNS):
        st.rerun(scope="app")
    if state_ == "running":
        st.progress(share, text)
        if state("trains", False):
            st.button("Stop training", on_click=training.stop)
        return
    if state_ == "failed":
        st.error(plain(text))

    def start() -> None:
        st.session_state.trains = True  # who started it may stop it
        training.start()

    st.button("Train a small model", on_click=start)


def photos_part() -> list[Picture]:
    """Let the visitor bring images; return them all."""
    files = st.file_uploader(
        "Drop images here", accept_multiple_files=True, key="files", max_upload_size=LIMITS.image_mib,
        help="JPEG, PNG, HEIC, WebP, TIFF, AVIF, BMP, GIF and more, of any size up to "
        f"{LIMITS.pixels // 1_000_000} megapixels. They are deleted after your visit.",
    )  # fmt: skip
    pictures = [picture for file in files if (picture := bring(file.file_id, file.name, file))]
    listed = {file.file_id for file in files}
    known = state("brought", {})
    for file_id in state("listed", set()) - listed:  # taken away by the visitor
        key = known.pop(file_id, None)
        if key is not None and key not in known.values():
            forget(key)
    st.session_state.listed = listed
    earlier = [file_id for file_id in known if file_id not in listed and known[file_id] in gallery().pictures]
    pictures = [gallery().pictures[known[file_id]] for file_id in earlier] + pictures
    if earlier and st.button(f"Remove {len(earlier)} earlier images"):
        for file_id in earlier:
            forget(known.pop(file_id))
        st.rerun()
    return pictures + samples_part(not pictures)


def bring(file_id: str, name: str, file: io.BytesIO) -> Picture | None:
    """Keep an uploaded image, once; say what is wrong with it."""
    known, refused = state("brought", {}), state("refused", {})
    if known.get(file_id) not in gallery().pictures and file_id not in refused:  # also where the gallery was lost
        try:
            known[file_id] = gallery().add(name, file.getvalue()).key
        except TiramisuError as error:
            refused[file_id] = str(error)
    if file_id in refused:
        st.error(plain(refused[file_id]))
        return None
    picture = gallery().pictures[known[file_id]]
    if picture.name != name:
        small(f"{plain(name)} is the same image as {plain(picture.name)}.")
    return picture


def forget(key: str) -> None:
    """Remove a picture; what was refused before may have room now."""
    gallery().remove(key)
    state("refused", {}).clear()


def samples_part(expanded: bool) -> list[Picture]:
    """Show the sample scenes to choose from; return the chosen ones."""
    wanted = st.query_params.get("samples", "").split(",")
    chosen = {number for number in range(SAMPLES) if str(number) in wanted}
    with st.expander("Or try a sample scene", expanded=expanded and not chosen):
        for number, column in enumerate(st.columns(SAMPLES)):
            column.image(sample(number), width="stretch", alt=f"Sample scene {number + 1}: a drawn street")
            label = f"Remove scene {number + 1}" if number in chosen else f"Use scene {number + 1}"
            if column.button(label, key=f"sample{number}", width="stretch"):
                st.query_params["samples"] = ",".join(map(str, sorted(chosen ^ {number})))
                st.rerun()
    try:
        return [gallery().add(f"scene {number + 1}.png", sample(number)) for number in sorted(chosen)]
    except TiramisuError as error:
        st.error(plain(str(error)))
        return []


def camera_part() -> list[Picture]:
    """Let the visitor take photos; return them all."""
    photo = st.camera_input("Take a photo", key=f"camera{state('cameras', 0)}", resolution="720p")
    taken: dict[str, str] = state("taken", {})
    if photo is not None and photo.file_id not in taken:
        try:
            taken[photo.file_id] = gallery().add(f"photo {len(taken) + 1}.jpg", photo.getvalue()).key
        except TiramisuError as error:
            st.error(plain(str(error)))
    pictures = [gallery().pictures[key] for key in taken.values() if key in gallery().pictures]
    if pictures and st.button(f"Remove {len(pictures)} photos" if len(pictures) > 1 else "Remove the photo"):
        for picture in pictures:
            forget(picture.key)
        st.session_state.cameras += 1  # an empty one in its place
        st.rerun()
    return pictures


def segment_next(pending: list[Picture], total: int, service: Service, setup: Setup) -> None:
    """Segment images beside this page, and show how far they are until something is new.

    Clicking on anything runs the page again, while the work goes on; other settings, Cancel and removal end it.
    """
    keys = frozenset(picture.key for picture in pending)
    cancelled = state("cancelled", frozenset()) & keys
    if cancelled:
        st.warning(f"Cancelled: {len(cancelled)} of {total} images are not segmented.")
        st.button("Go on", on_click=lambda: st.session_state.update(cancelled=frozenset()))
    pending = [picture for picture in pending if picture.key not in cancelled]
    if not pending:
        gallery().stop()
        return
    bar, button = st.columns([5, 1], vertical_alignment="center")
    button.button("Cancel", key="cancel", on_click=lambda: st.session_state.update(cancelled=keys))
    progress = bar.progress(0.0)
    start = time.monotonic()
    for position, picture in enumerate(pending):
        done = total - len(pending) + position
        work = gallery().begin(picture, service, setup)
        while work.running:
            show_step(progress, f"{done + 1} of {total}: {plain(picture.name)}", done, total, work.step)
            work.wait(LOOK_SECONDS)
        if work.error is not None:
            st.warning(plain(str(work.error)))
            st.button("Try again")
            return
        if done == 0 or time.monotonic() - start > STEP_SECONDS:
            break
    st.rerun()


def show_step(bar: DeltaGenerator, what: str, done: int, total: int, step: Step) -> None:
    """Show where an image stands."""
    others = "1 other" if step.ahead == 1 else f"{step.ahead} others"
    text = f"Waiting for {others}" if step.ahead else "Segmenting"
    bar.progress(min((done + step.share) / total, 1.0), f"{text}: {what}")


def table_part(results: list[Result], safe: bool) -> Result:
    """Show many results as a table, the most uncertain first; return the one to look at."""
    ordered = sorted(results, key=doubt, reverse=True)
    if len(ordered) == 1:
        return ordered[0]
    order = [result.picture.key for result in ordered]
    wanted = st.query_params.get("image", "")  # part of the address, so that the view can be shared
    shown = next((result for result in ordered if result.picture.name == wanted), ordered[0])
    verdicts = known_verdicts(shown.setup)
    rows = [
        {
            "Shown": "●" if result is shown else "",
            "Overlay": result.thumbnails[safe],
            "Image": result.picture.name,
            "Uncertainty": 100 * doubt(result),
            "Verdict": verdicts.get(result.picture.key) or "",
            **{name: 100 * share for name, share in result.areas.items()},
        }
        for result in ordered
    ]
    share = st.column_config.NumberColumn(format="%.1f %%")

    def choose() -> None:
        selection = st.session_state.table["selection"]
        row = next(iter([*selection["rows"], *(cell[0] for cell in selection["cells"])]), None)
        if row is not None:
            st.query_params["image"] = gallery().pictures[order[row]].name

    st.dataframe(
        rows, hide_index=True, row_height=56, height=min(36 + 56 * len(rows), 330), key="table",
        on_select=choose, selection_mode=["single-row", "single-cell"],
        alt="Results: areas and uncertainty of every image",
        column_config={
            "Shown": st.column_config.TextColumn(width=40, label=""),
            "Overlay": st.column_config.ImageColumn(width="small"),
            "Uncertainty": st.column_config.ProgressColumn(
                format="%.1f %%", min_value=0, max_value=100,
                help="What the probabilities of the classes shown lack to 100 %, or with MC-dropout how much its "
                "passes disagree; mean over the pixels.",
            ),
            **dict.fromkeys(ordered[0].labels.names, share),
        },
    )  # fmt: skip
    small("Most uncertain first: worth labelling next. Click a row to look at it, a column's head to sort.")
    return shown


@st.fragment
def viewer_part(result: Result, labels: LabelSet) -> None:
    """Show the viewer; its settings go into the page's address."""
    settings = viewer.read_settings(st.query_params.to_dict(), labels)
    drawn = (str(result.folder), labels)
    if state("drawn", (None, None))[0] != drawn:
        pixels = gallery().decode(result.picture).pixels
        # The settings to begin with stay as they were: the viewer has its own by now, and one message need be made.
        data = viewer.viewer_data(pixels, result, labels, LIMITS.display_side) | {"settings": settings}
        st.session_state.drawn = (drawn, data)
    SHOW(key="viewer", data=st.session_state.drawn[1], on_settings_change=lambda: keep_settings(labels))


def keep_settings(labels: LabelSet) -> None:
    """Write the viewer's settings into the page's address, so that the view can be shared."""
    settings = st.session_state.viewer["settings"]
    query = viewer.write_settings(settings, labels) if settings else {}
    for name in ("opacity", "view", "hidden"):
        st.query_params.pop(name, None)
    st.query_params.update(query)


def facts_part(result: Result, service: Service, labels: LabelSet) -> None:
    """Show what is known about a result, and ask what the visitor thinks of it."""
    seconds = f"{result.seconds:.1f} s" if result.seconds >= 1 else f"{1000 * result.seconds:.0f} ms"
    st.markdown(f"**{seconds}** · mean probability **{100 * result.confidence:.0f} %**")
    notes = [f"{result.width} x {result.height} pixels", service.description, result.note]
    if max(result.width, result.height) > LIMITS.display_side:
        notes.append(f"shown at {LIMITS.display_side} pixels, whole in the ZIP")
    small(" · ".join(note for note in notes if note))
    verdicts = known_verdicts(result.setup)
    key = result.picture.key
    verdict = st.segmented_control(
        "Is the mask right?", VERDICTS, default=verdicts.get(key), key=f"verdict {key} {result.setup.weights}",
        format_func=str.capitalize,
    )  # fmt: skip
    if verdict != verdicts.get(key):
        verdicts[key] = verdict
        st.rerun()
    present = sorted((item for item in result.areas.items() if item[1] > 0), key=lambda item: -item[1])
    table = {"Class": [name for name, _ in present], "Area (%)": [round(100 * share, 2) for _, share in present]}
    chart_tab, table_tab = st.tabs(["Areas", "Table"])
    with chart_tab:
        colors = dict(zip(labels.names, labels.palette, strict=True))
        colored = table | {"Colour": [hex_color(colors[name]) for name, _ in present]}
        st.vega_lite_chart(
            colored, AREA_CHART, width="stretch", height=60 + 24 * len(present), alt=describe_areas(present)
        )
    table_tab.dataframe(table, hide_index=True, alt=describe_areas(present))


def known_verdicts(setup: Setup) -> dict[str, str | None]:
    """Return what the visitor thinks of a model's masks, by picture."""
    verdicts: dict[str, str | None] = state("verdicts", {}).setdefault(setup.weights, {})
    return verdicts


def describe_areas(present: list[tuple[str, float]]) -> str:
    """Return a text for those who do not see the chart."""
    return "Areas: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in present)


def downloads_part(results: list[Result], labels: LabelSet) -> None:
    """Offer everything to take home."""
    verdicts = {key: value for key, value in known_verdicts(results[0].setup).items() if value}

    mine = gallery()  # the function runs at the click, outside of this visit

    def package() -> bytes:
        with tempfile.TemporaryDirectory(dir=mine.root) as folder:  # of its own: another click may run beside this one
            path = Path(folder) / "package.zip"
            write_package(mine, results, labels, verdicts, path)
            return path.read_bytes()

    left, right, _ = st.columns([1, 1, 2])
    left.download_button(
        "Download all results (ZIP)", package, "tiramisu.zip", "application/zip", on_click="ignore", width="stretch",
        help="Masks, overlays, areas.csv, COCO and LabelMe annotations.",
    )  # fmt: skip
    right.download_button(
        "List for relabelling (CSV)", relabelling_list(results, verdicts), "relabel.csv", "text/csv", on_click="ignore",
        width="stretch", help="What you marked wrong, then what you did not mark, the most uncertain first.",
    )  # fmt: skip


def assessment_part(result: Result, results: list[Result], labels: LabelSet) -> None:
    """Compare results with their true masks, where the visitor has them."""
    with st.expander("Measure it: compare with true masks"):
        files = st.file_uploader(
            "Masks of class indices (PNG), named like their images", accept_multiple_files=True, key="masks",
            max_upload_size=LIMITS.image_mib,
        )  # fmt: skip
        by_name = {file.name: file for file in files}
        pairs: dict[str, tuple[Any, Any]] = {}
        for each in results:
            partner = find_partner(each.picture.name, list(by_name))
            if partner is not None:
                try:
                    truth = read_truth(gallery(), partner, by_name[partner].getvalue(), each)
                    pairs[each.picture.key] = each.read("mask"), truth
                except TiramisuError as error:
                    st.error(plain(str(error)))
        if not pairs:
            if files and not any(find_partner(each.picture.name, list(by_name)) for each in results):
                st.info(
                    "None of these masks is named like an image here: street.png or street_mask.png for street.jpg."
                )
            return
        left, right = st.columns([2, 1])
        if result.picture.key in pairs:
            prediction, truth = pairs[result.picture.key]
            left.image(error_map(prediction, truth, labels), width="stretch", alt=f"Errors in {result.picture.name}")
            with left:
                small("Right pixels grey, wrong ones in the colour of the true class, void black.")
        else:
            left.info(f"There is no mask for {plain(result.picture.name)}.")
        scores = assess(pairs.values(), labels)
        with right:
            small(f"{len(pairs)} images, all pixels together" if len(pairs) > 1 else "This image")
        right.metric("mIoU", f"{100 * scores.mean_iou:.1f} %")
        right.metric("Pixel accuracy", f"{100 * scores.accuracy:.1f} %")
        known = [(name, iou) for name, iou in zip(labels.names, scores.iou, strict=True) if iou == iou]
        right.dataframe(
            {"Class": [name for name, _ in known], "IoU (%)": [100 * iou for _, iou in known]}, hide_index=True,
            height="content", alt="IoU of each class",
            column_config={"IoU (%)": st.column_config.NumberColumn(format="%.1f")},
        )  # fmt: skip


def video_part(service: Service, setup: Setup, labels: LabelSet) -> None:
    """Segment a video."""
    file = st.file_uploader(
        "Drop a video here", sorted(suffix.lstrip(".") for suffix in VIDEO_SUFFIXES), key="video",
        max_upload_size=LIMITS.video_mib,
        help=f"The first {LIMITS.frames} frames are segmented.",
    )  # fmt: skip
    known = state("clip", None)  # outlives a look at another source, which makes the uploader forget its file
    wanted = (file.file_id, setup, labels) if file is not None else None
    if file is not None and (known is None or known[0] != wanted):
        again = known is not None and known[0][0] == file.file_id
        if st.button("Segment it again with these settings" if again else "Segment the video"):
            with st.container(key="working"):
                segment_video_file(file, service, setup, labels)
        if not again:
            return
    if known is None:
        return
    clip = known[1]
    left, right = st.columns([3, 1.2], gap="medium")
    left.video(clip.video)
    with right:
        small(clip.note)
        st.vega_lite_chart(
            clip.areas, areas_over_time(labels, clip.areas), width="stretch", alt="Area of each class over time"
        )
        st.download_button(
            "Overlay video", clip.video, "overlay.webm", "video/webm", on_click="ignore", width="stretch"
        )
        st.download_button("Areas (CSV)", clip.table, "areas.csv", "text/csv", on_click="ignore", width="stretch")


def segment_video_file(file: Any, service: Service, setup: Setup, labels: LabelSet) -> None:
    """Segment a video with progress; a click on anything ends it."""
    place = st.empty()
    with place.container():
        bar = st.progress(0.0, "Reading the video …")
        st.button("Cancel")  # any click ends the run of this page, and with it the video

    def tell(progress: ClipProgress) -> None:
        bar.progress(progress.share, f"Frame {progress.frame} of {progress.frames}")

    try:
        clip = segment_clip(gallery(), service, file.name, file.getbuffer(), labels, setup.options.tta, tell)
    except TiramisuError as error:
        place.empty()
        st.error(plain(str(error)))
        return
    st.session_state.clip = ((file.file_id, setup, labels), clip)
    st.rerun()


def main() -> None:
    """Lay out the page."""
    st.set_page_config("Tiramisu: semantic segmentation", "🍰", layout="wide")
    st.html(STYLE)
    st.title("Tiramisu: drop a photo, see its classes")
    models = find_models(RUNS)
    if not models:
        training_part()
        return
    try:
        service, setup, labels = settings_part(models)
    except TiramisuError as error:
        st.error(plain(str(error)))
        return
    source = st.segmented_control(
        "Source", SOURCES, default=SOURCES[0], required=True, key="source", label_visibility="collapsed",
        bind="query-params",
    )  # fmt: skip
    if source != SOURCES[0]:
        st.session_state.listed = set()  # an uploader that is not shown forgets its files; we do not
    if source == "Video":
        video_part(service, setup, labels)
        return
    pictures = camera_part() if source == "Camera" else photos_part()
    pictures = list({picture.key: picture for picture in pictures}.values())
    found = [(picture, gallery().find(picture, setup)) for picture in pictures]
    results = [result for _, result in found if result is not None and not result.error]
    # Containers hold the viewer's place on the page, so that it keeps its zoom when lines appear above it.
    troubles, waiting, table, output = (st.container() for _ in range(4))
    refused = [result.error for _, result in found if result is not None and result.error]
    if refused:
        troubles.error("\n\n".join(plain(reason) for reason in refused))
    if results:
        with table:
            result = table_part(results, labels is not service.labels)
        left, right = output.columns([3, 1.2], gap="medium")
        with left:
            st.subheader(plain(result.picture.name))
            viewer_part(result, labels)
        with right:
            facts_part(result, service, labels)
        downloads_part([result for _, result in found if result is not None], labels)
        assessment_part(result, results, labels)
    pending = [picture for picture, result in found if result is None]
    if pending:
        with waiting:
            segment_next(pending, len(pictures), service, setup)
    else:
        gallery().stop()


main()
