"""The page: a tab for each task, built of gradio's components. Their functions are in studio.py."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps

import gradio as gr
from PIL import Image

from .studio import MAX_SEED, Settings, Studio

ANY = "any"  # the choice of no class
STRENGTH = "how much of the source is hidden; the strengths around it are drawn too"
PAINT = "#ff00ff"  # a colour that hardly any picture has
IN_MASK = "edit the 60% of the pixels where the class makes the most difference"
TASKS = {"generate": "Generate", "inpaint": "Inpaint", "edit": "Edit"}  # id of a tab -> its name
MOST_IMAGES = 16
# One call at a time, of whichever button: they share the model. More wait in the queue.
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
PROGRESS = gr.Progress()  # as a default, it has gradio pass the event's own
AT_ONCE = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


CSS = ".grid-wrap { min-height: 0 !important; overflow-y: auto !important }"  # as high as its rows


@dataclass(frozen=True)
class Source:
    """The component that holds the source of a tab, and how a picture is put there."""

    component: gr.ImageEditor | gr.Image
    show: Callable[[Image.Image], object]  # a picture of any size -> the component's value


def build(studio: Studio, name: str) -> gr.Blocks:
    """The page of one model.

    Args:
        name: of the model, for the heading.
    """
    present = [task for task in TASKS if task in studio.tasks]
    with gr.Blocks(title=f"mtl_diffusion: {name}", analytics_enabled=False) as page:
        classes = f", {len(studio.class_names)} classes" if studio.class_names else ""
        gr.Markdown(
            f"# {name}\nOne small model that does several jobs, at {studio.size}x{studio.size} "
            f"pixels{classes}. Its pictures are enlarged here."
        )
        with gr.Tabs() as tabs:
            sources = {}
            for task in present:
                with gr.Tab(TASKS[task], id=task) as tab:
                    if task == "inpaint":
                        sources[task] = _inpaint_tab(studio, tab)
                    elif task == "edit":
                        sources[task] = _edit_tab(studio, tab)
                    else:
                        gallery, buttons = _generate_tab(studio, present)
        if "generate" in present:
            _hand_over(studio, tabs, gallery, buttons, sources)
    return page.queue(max_size=16, api_open=False)


# --- the tabs -----------------------------------------------------------------------------------


def _generate_tab(studio: Studio, present: list[str]) -> tuple[gr.Gallery, dict[str, gr.Button]]:
    """Returns the gallery of results, and the buttons that take one of them to another tab."""
    with gr.Row():
        with gr.Column(scale=1):
            label = _class_menu(studio, studio.class_names[0] if studio.class_names else ANY)
            count = _count(8)
            settings = _settings(studio, "generate")
            draw = gr.Button("Generate", variant="primary", elem_id="generate-draw")
        with gr.Column(scale=2):
            gallery, took = _results("generate")
            with gr.Row():
                buttons = {
                    task: gr.Button(f"{TASKS[task]} the chosen one", size="sm")
                    for task in present
                    if task != "generate"
                }

    @_timed
    def generate(label, count, seed, steps, guidance, progress=PROGRESS):
        chosen = _chosen(label, seed, steps, guidance)
        images = studio.generate(chosen, count, _shown(progress))
        return [studio.enlarged(image) for image in images]

    draw.click(generate, [label, count, *settings], [gallery, took], **ONE_AT_A_TIME)
    return gallery, buttons


def _inpaint_tab(studio: Studio, tab: gr.Tab) -> Source:
    with gr.Row():
        with gr.Column(scale=1):
            editor = gr.ImageEditor(
                label="Upload a picture or take an example, then paint over what is to be replaced",
                type="pil",
                format="png",
                sources=["upload", "clipboard"],
                transforms=[],
                layers=False,
                brush=gr.Brush(default_size=48, colors=[PAINT], color_mode="fixed"),
                canvas_size=(studio.side, studio.side),
                height=studio.side + 130,  # and its tools
                buttons=[],
                elem_id="inpaint-source",
            )
            source = Source(
                editor, lambda image: {"background": image, "layers": [], "composite": None}
            )
            _examples(studio, tab, source)
        with gr.Column(scale=1):
            with gr.Row():
                label = _class_menu(studio, ANY)
                count = _count(5)
            settings = _settings(studio, "inpaint")
            draw = gr.Button("Inpaint", variant="primary", elem_id="inpaint-draw")
            gallery, took = _results("inpaint", columns=3)

    @_timed
    def inpaint(value, label, count, seed, steps, guidance, progress=PROGRESS):
        value = value or {"background": None, "layers": []}
        chosen = _chosen(label, seed, steps, guidance)
        image, layers = value["background"], value["layers"]
        results = studio.inpaint(image, layers, chosen, count, _shown(progress))
        return [(studio.enlarged(result), caption) for result, caption in results]

    @_said
    def crop(value):
        return source.show(studio.enlarged(studio.fit(value and value["background"])))

    editor.upload(crop, editor, editor, **AT_ONCE)
    draw.click(inpaint, [editor, label, count, *settings], [gallery, took], **ONE_AT_A_TIME)
    return source


def _edit_tab(studio: Studio, tab: gr.Tab) -> Source:
    with gr.Row():
        with gr.Column(scale=1):
            picture = gr.Image(
                label="Upload a picture or take an example",
                type="pil",
                format="png",
                sources=["upload", "clipboard"],
                height=studio.side,
                buttons=[],
                elem_id="edit-source",
            )
            # Not in a subclass: gradio would write a file of types beside this one.
            picture.preprocess = _readable(picture.preprocess)
            source = Source(picture, lambda image: image)
            _examples(studio, tab, source)
        with gr.Column(scale=1):
            with gr.Row():
                label = gr.Dropdown(list(studio.class_names), value=None, label="Turn it into")
                strength = gr.Slider(0.0, 1.0, 0.7, step=0.05, label="Strength", info=STRENGTH)
            in_mask = gr.Checkbox(
                False, label="Keep the background", info=IN_MASK, elem_id="edit-in-mask"
            )
            settings = _settings(studio, "edit")
            draw = gr.Button("Edit", variant="primary", elem_id="edit-draw")
            gallery, took = _results("edit", columns=3)

    @_timed
    def edit(image, label, strength, in_mask, seed, steps, guidance, progress=PROGRESS):
        chosen = _chosen(label, seed, steps, guidance)
        results = studio.edit(image, chosen, strength, in_mask, _shown(progress))
        return [(studio.enlarged(result), caption) for result, caption in results]

    @_said
    def crop(image):
        return studio.enlarged(studio.fit(image))

    picture.upload(crop, picture, picture, **AT_ONCE)
    draw.click(
        edit, [picture, label, strength, in_mask, *settings], [gallery, took], **ONE_AT_A_TIME
    )
    return source


# --- parts of a tab -----------------------------------------------------------------------------


def _class_menu(studio: Studio, value: str) -> gr.Dropdown:
    return gr.Dropdown([ANY, *studio.class_names], value=value, label="Class")


def _count(value: int) -> gr.Slider:
    return gr.Slider(1, MOST_IMAGES, value, step=1, label="Images")


def _results(task: str, columns: int = 4) -> tuple[gr.Gallery, gr.Markdown]:
    """The gallery, and the line below it for the time that they took."""
    gallery = gr.Gallery(
        label="Results",
        columns=columns,
        object_fit="contain",
        format="png",
        type="pil",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id=f"{task}-results",
    )
    return gallery, gr.Markdown(elem_id=f"{task}-took")


def _settings(studio: Studio, task: str) -> list[gr.components.Component]:
    """The seed, the steps and the guidance."""
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, scale=3)
        another = gr.Button("Another", size="sm", scale=1, min_width=60)
    another.click(lambda: random.randint(0, MAX_SEED), None, seed, **AT_ONCE)
    pipe = studio.pipe
    default = pipe.default_steps(task)
    with gr.Accordion("Sampling", open=False):
        if pipe.chains is None:
            steps = gr.Slider(1, 50, default, step=1, label="Steps")
        else:
            counts = [len(levels) for levels in pipe.chains]
            steps = gr.Radio(counts, value=default, label="Steps")
        guidance = gr.Number(
            None, label="Guidance scale", info="1 is off; left empty, it is the task's own"
        )
    return [seed, steps, guidance]


def _examples(studio: Studio, tab: gr.Tab, source: Source) -> None:
    """Samples to click on; they are drawn when the tab is first opened."""
    if "generate" not in studio.tasks:
        return
    row = gr.Gallery(
        label="Examples, drawn by the model",
        columns=5,
        object_fit="contain",
        format="png",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_classes="examples",
    )

    def take(event: gr.SelectData):
        return source.show(studio.enlarged(studio.examples()[event.index]))

    def draw():
        return [studio.enlarged(image) for image in studio.examples()]

    row.select(take, None, source.component, **AT_ONCE)
    tab.select(draw, None, row, **ONE_AT_A_TIME)


def _hand_over(studio, tabs, gallery, buttons, sources) -> None:
    """A result that is clicked on is the one that the buttons take to another tab."""
    index = gr.State(0)

    def remember(event: gr.SelectData):
        return event.index

    def take(source: Source, task: str, images, index):
        if not images:
            raise gr.Error("There is no result yet: generate some, and click on one.", title="")
        image, _ = images[min(index, len(images) - 1)]
        return source.show(studio.enlarged(image)), gr.Tabs(selected=task)

    gallery.select(remember, None, index, **AT_ONCE)
    for task, button in buttons.items():
        button.click(
            partial(take, sources[task], task),
            [gallery, index],
            [sources[task].component, tabs],
            **AT_ONCE,
        )


# --- between gradio and the studio --------------------------------------------------------------


def _chosen(label: str | None, seed, steps: int, guidance) -> Settings:
    if seed is None:
        raise ValueError("The seed is empty; give a whole number.")
    return Settings(None if label == ANY else label, int(seed), steps, guidance)


def _shown(progress: gr.Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress((done, total), unit="steps")


def _readable(preprocess):
    """gradio's reading of an upload, with a message on the page for a file that is no picture."""

    @wraps(preprocess)
    def call(payload):
        try:
            return preprocess(payload)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise gr.Error(
                "This file can't be read as a picture; give a PNG or a JPEG, for example.",
                title="",
                print_exception=False,
            ) from error

    return call


def _said(function):
    """Shows a ValueError about the input as a message on the page."""

    @wraps(function)
    def call(*arguments):
        try:
            return function(*arguments)
        except ValueError as error:
            raise gr.Error(str(error), title="", print_exception=False) from error

    return call


def _timed(function):
    """As `_said`; the elapsed time is one more result."""
    function = _said(function)

    @wraps(function)
    def call(*arguments):
        start = time.perf_counter()
        results = function(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        return *results, f"{time.perf_counter() - start:.1f} s"

    return call
