"""The page: a tab for each task, built of gradio's components. Their functions are in studio.py."""

import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps

import gradio as gr
from PIL import Image

from .reading import read_file
from .studio import MAX_SEED, Settings, Studio

NO_CLASS = -1  # the value of the menu's first line; those of the classes are their numbers
STRENGTH = "how much of the source is hidden; the strengths around it are drawn too"
TASKS = {"generate": "Generate", "inpaint": "Inpaint", "edit": "Edit"}  # id of a tab -> its name
MOST_IMAGES = 16
# Seconds: so often, files that are older than the second number are deleted.
DELETE = (600, 3600)
# One call at a time, of whichever button: they share the processor. More wait in the queue.
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
AT_ONCE = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
PROGRESS = gr.Progress()  # as a default, it has gradio pass the event's own
CSS = ".grid-wrap { min-height: 0 !important; overflow-y: auto !important }"  # as high as its rows
PICTURES = {"object_fit": "contain", "format": "png", "interactive": False}  # of galleries
UPLOAD = {"type": "pil", "format": "png", "sources": ["upload", "clipboard"], "buttons": []}


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
    options = {"analytics_enabled": False, "delete_cache": DELETE}
    with gr.Blocks(title=f"mtl_diffusion: {name}", **options) as page:
        classes = f", {len(studio.class_names)} classes" if studio.class_names else ""
        width, height = studio.size
        gr.Markdown(
            f"# {name}\nOne small model that does several jobs, at {width}x{height} "
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
            label = _class_menu(studio, 0 if studio.class_names else NO_CLASS)
            count = gr.Slider(1, MOST_IMAGES, 8, step=1, label="Images")
            settings, draw = _settings(studio, "generate")
        with gr.Column(scale=2):
            results = _results("generate", columns=4)
            with gr.Row():
                others = [task for task in present if task != "generate"]
                buttons = {
                    task: gr.Button(f"{TASKS[task]} the chosen one", size="sm") for task in others
                }

    def generate(label, count, seed, steps, guidance, progress=PROGRESS):
        images = studio.generate(_chosen(label, seed, steps, guidance), count, _shown(progress))
        return [studio.enlarged(image) for image in images]

    _on_click(draw, generate, [label, count, *settings], results)
    return results[0], buttons


def _inpaint_tab(studio: Studio, tab: gr.Tab) -> Source:
    with gr.Row():
        with gr.Column(scale=1):
            editor = gr.ImageEditor(
                label="Upload a picture or take an example, then paint over what is to be replaced",
                transforms=[],
                layers=False,
                # A colour that hardly any picture has.
                brush=gr.Brush(default_size=48, colors=["#ff00ff"], color_mode="fixed"),
                canvas_size=studio.side,
                height=studio.side[1] + 130,  # and its tools
                elem_id="inpaint-source",
                **UPLOAD,
            )
            # Not in a subclass: gradio would write a file of types beside this one.
            editor.convert_and_format_image = _said(
                partial(_read_part, alpha=studio.mode == "RGBA")
            )
            source = Source(
                editor, lambda image: {"background": image, "layers": [], "composite": None}
            )
            _examples(studio, tab, source)
        with gr.Column(scale=1):
            with gr.Row():
                label = _class_menu(studio, NO_CLASS)
                count = gr.Slider(1, MOST_IMAGES, 5, step=1, label="Images")
            settings, draw = _settings(studio, "inpaint")
            results = _results("inpaint", columns=3)

    def inpaint(value, label, count, seed, steps, guidance, progress=PROGRESS):
        value = value or {"background": None, "layers": []}
        chosen = _chosen(label, seed, steps, guidance)
        image, layers = value["background"], value["layers"]
        drawn = studio.inpaint(image, layers, chosen, count, _shown(progress))
        return [(studio.enlarged(result), caption) for result, caption in drawn]

    def crop(value):
        return source.show(studio.enlarged(studio.fit(value and value["background"])))

    editor.upload(_said(crop), editor, editor, **AT_ONCE)
    _on_click(draw, inpaint, [editor, label, count, *settings], results)
    return source


def _edit_tab(studio: Studio, tab: gr.Tab) -> Source:
    with gr.Row():
        with gr.Column(scale=1):
            picture = gr.Image(
                label="Upload a picture or take an example",
                height=studio.side[1],
                elem_id="edit-source",
                **UPLOAD,
            )
            picture.preprocess = _said(
                lambda file: file and read_file(file.path, alpha=studio.mode == "RGBA")
            )
            source = Source(picture, lambda image: image)
            _examples(studio, tab, source)
        with gr.Column(scale=1):
            with gr.Row():
                classes = [(name, number) for number, name in enumerate(studio.class_names)]
                label = gr.Dropdown(classes, value=None, label="Turn it into")
                usual = studio.default_strength("edit")
                strength = gr.Slider(0.0, 1.0, usual, step=0.05, label="Strength", info=STRENGTH)
            settings, draw = _settings(studio, "edit")
            results = _results("edit", columns=3)

    def edit(image, label, strength, seed, steps, guidance, progress=PROGRESS):
        chosen = _chosen(label, seed, steps, guidance)
        drawn = studio.edit(image, chosen, strength, _shown(progress))
        return [(studio.enlarged(result), caption) for result, caption in drawn]

    def crop(image):
        return studio.enlarged(studio.fit(image))

    picture.upload(_said(crop), picture, picture, **AT_ONCE)
    _on_click(draw, edit, [picture, label, strength, *settings], results)
    return source


# --- parts of a tab -----------------------------------------------------------------------------


def _class_menu(studio: Studio, value: int) -> gr.Dropdown:
    no_class = "any"
    while no_class in studio.class_names:
        no_class = f"({no_class})"
    choices = [(no_class, NO_CLASS)]
    choices += [(name, number) for number, name in enumerate(studio.class_names)]
    return gr.Dropdown(choices, value=value, label="Class")


def _settings(studio: Studio, task: str) -> tuple[list[gr.components.Component], gr.Button]:
    """The seed, the steps and the guidance; and the button that draws."""
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
    draw = gr.Button(TASKS[task], variant="primary", elem_id=f"{task}-draw")
    return [seed, steps, guidance], draw


def _results(task: str, columns: int) -> tuple[gr.Gallery, gr.Markdown]:
    """The gallery, and the line below it for the time that they took."""
    buttons = ["download", "fullscreen"]
    options = {"columns": columns, "type": "pil", "buttons": buttons, **PICTURES}
    gallery = gr.Gallery(label="Results", elem_id=f"{task}-results", **options)
    return gallery, gr.Markdown(elem_id=f"{task}-took")


def _on_click(button: gr.Button, function, inputs: list, results: tuple) -> None:
    """Has the button draw; the elapsed time is one more result."""
    function = _said(function)

    @wraps(function)  # gradio reads the arguments from its signature
    def timed(*arguments):
        start = time.perf_counter()
        drawn = function(*arguments)
        return drawn, f"{time.perf_counter() - start:.1f} s"

    button.click(timed, inputs, list(results), **ONE_AT_A_TIME)


def _examples(studio: Studio, tab: gr.Tab, source: Source) -> None:
    """Samples to click on; they are drawn when the tab is first opened."""
    if "generate" not in studio.tasks:
        return
    options = {"columns": 5, "allow_preview": False, "buttons": [], **PICTURES}
    row = gr.Gallery(label="Examples, drawn by the model", elem_classes="examples", **options)

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

    def taking(source: Source, task: str):
        def take(images, index):
            if not images:
                raise ValueError("There is no result yet: generate some, and click on one.")
            image, _ = images[min(index, len(images) - 1)]
            return source.show(studio.enlarged(image)), gr.Tabs(selected=task)

        return _said(take)

    gallery.select(remember, None, index, **AT_ONCE)
    for task, button in buttons.items():
        outputs = [sources[task].component, tabs]
        button.click(taking(sources[task], task), [gallery, index], outputs, **AT_ONCE)


# --- between gradio and the studio --------------------------------------------------------------


def _chosen(label: int | None, seed, steps: int, guidance) -> Settings:
    if seed is None:
        raise ValueError("The seed is empty; give a whole number.")
    return Settings(None if label == NO_CLASS else label, int(seed), steps, guidance)


def _shown(progress: gr.Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress((done, total), unit="steps")


def _read_part(file, flatten_on_white: bool = False, alpha: bool = False) -> Image.Image | None:
    """A part of the editor's value, a file or its bytes: the picture, or a layer of paint."""
    if file is None:
        return None
    file = io.BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else file.path
    return read_file(file, alpha) if flatten_on_white else Image.open(file).convert("RGBA")


def _said(function):
    """Shows a ValueError about the input as a message on the page."""

    @wraps(function)
    def call(*arguments, **options):
        try:
            return function(*arguments, **options)
        except ValueError as error:
            raise gr.Error(str(error), title="", print_exception=False) from error

    return call
