"""The page: a tab for each task, built of gradio's components. Their functions are in studio.py."""

import io
import random
from functools import partial, wraps

import gradio as gr
from PIL import Image

from .studio import MAX_SEED, Studio, read_file

NO_CLASS = -1  # the value of the menu's first line; those of the classes are their numbers
STRENGTH = "how much of the source is hidden; the strengths around it are drawn too"
TASKS = {"generate": "Generate", "inpaint": "Inpaint", "edit": "Edit"}  # id of a tab -> its name
COUNTS = {"generate": 8, "inpaint": 5}  # images, unless the user changes it
MOST_IMAGES = 16
# Seconds: so often, files that are older than the second number are deleted.
DELETE = (600, 3600)
# One call at a time, of whichever button: they share the processor. More wait in the queue.
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
AT_ONCE = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
CSS = ".grid-wrap { min-height: 0 !important; overflow-y: auto !important }"  # as high as its rows
PICTURES = {"object_fit": "contain", "format": "png", "interactive": False}  # of galleries
UPLOAD = {"type": "pil", "format": "png", "sources": ["upload", "clipboard"], "buttons": []}


def build(studio: Studio, name: str) -> gr.Blocks:
    """The page of one model.

    Args:
        name: of the model, for the heading.
    """
    options = {"analytics_enabled": False, "delete_cache": DELETE}
    with gr.Blocks(title=f"mtl_diffusion: {name}", **options) as page:
        classes = f", {len(studio.class_names)} classes" if studio.class_names else ""
        width, height = studio.size
        gr.Markdown(
            f"# {name}\nOne small model that does several jobs, at {width}x{height} "
            f"pixels{classes}. Its pictures are enlarged here."
        )
        with gr.Tabs():
            for task in (task for task in TASKS if task in studio.tasks):
                with gr.Tab(TASKS[task], id=task) as tab, gr.Row():
                    source = None
                    if task != "generate":
                        with gr.Column():
                            source = _source(studio, task)
                            _examples(studio, tab, task, source)
                    with gr.Column():
                        _controls(studio, task, source)
    return page.queue(max_size=16, api_open=False)


def _source(studio: Studio, task: str) -> gr.ImageEditor | gr.Image:
    """The component with the source of a tab."""
    alpha = studio.pipe.format.mode == "RGBA"
    common = {"elem_id": f"{task}-source", **UPLOAD}
    if task == "edit":
        label = "Upload a picture or take an example"
        source = gr.Image(label=label, height=studio.side[1], **common)
        source.preprocess = _said(lambda file: file and read_file(file.path, alpha))
    else:
        source = gr.ImageEditor(
            label="Upload a picture or take an example, then paint over what is to be replaced",
            transforms=[],
            layers=False,
            # A colour that hardly any picture has.
            brush=gr.Brush(default_size=48, colors=["#ff00ff"], color_mode="fixed"),
            canvas_size=studio.side,
            height=studio.side[1] + 130,  # and its tools
            **common,
        )
        # Not in a subclass: gradio would write a file of types beside this one.
        source.convert_and_format_image = _said(partial(_read_part, alpha=alpha))

    def crop(value):
        return _shown(task, studio.enlarged(studio.fit(_picture(value))))

    source.upload(_said(crop), source, source, **AT_ONCE)
    return source


def _shown(task: str, image: Image.Image) -> Image.Image | dict:
    """A picture as the value of a tab's source."""
    return image if task == "edit" else {"background": image, "layers": [], "composite": None}


def _picture(value: Image.Image | dict | None) -> Image.Image | None:
    """The picture in the value of a tab's source; undoes `_shown`."""
    return value["background"] if isinstance(value, dict) else value


def _examples(studio: Studio, tab: gr.Tab, task: str, source: gr.ImageEditor | gr.Image) -> None:
    """Samples to click on; they are drawn when the tab is first opened."""
    if "generate" not in studio.tasks:
        return
    options = {"columns": 5, "allow_preview": False, "buttons": [], **PICTURES}
    row = gr.Gallery(label="Examples, drawn by the model", elem_classes="examples", **options)

    def take(event: gr.SelectData):
        return _shown(task, studio.enlarged(studio.examples[event.index]))

    def draw():
        return [studio.enlarged(image) for image in studio.examples]

    row.select(take, None, source, **AT_ONCE)
    tab.select(draw, None, row, **ONE_AT_A_TIME)


def _controls(studio: Studio, task: str, source: gr.ImageEditor | gr.Image | None) -> None:
    """The settings of a tab, the button that draws, and the gallery of results."""
    with gr.Row():
        label = _class_menu(studio, task)
        if task == "edit":
            usual = studio.pipe.spec(task).default_strength
            number = gr.Slider(0.0, 1.0, usual, step=0.05, label="Strength", info=STRENGTH)
        else:
            number = gr.Slider(1, MOST_IMAGES, COUNTS[task], step=1, label="Images")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, scale=3)
        another = gr.Button("Another", size="sm", scale=1, min_width=60)
    another.click(lambda: random.randint(0, MAX_SEED), None, seed, **AT_ONCE)
    with gr.Accordion("Sampling", open=False):
        pipe = studio.pipe
        usual = {"value": pipe.default_steps(task), "label": "Steps"}
        if pipe.chains is None:
            steps = gr.Slider(1, 50, step=1, **usual)
        else:
            steps = gr.Radio([*pipe.step_counts(task)], **usual)
        guidance = gr.Number(
            None, label="Guidance scale", info="1 is off; left empty, it is the task's own"
        )
    button = gr.Button(TASKS[task], variant="primary", elem_id=f"{task}-draw")
    columns = 8 if task == "generate" else 3
    shown = {"type": "pil", "buttons": ["download", "fullscreen"], **PICTURES}
    results = gr.Gallery(label="Results", elem_id=f"{task}-results", columns=columns, **shown)

    def draw(value, label, number, seed, steps, guidance):
        chosen = (None if label == NO_CLASS else label, seed, steps, guidance)
        layers = value["layers"] if isinstance(value, dict) else []
        drawn = studio.draw(task, number, *chosen, _picture(value), layers)
        return [(studio.enlarged(image), caption) for image, caption in drawn]

    given = [source or gr.State(), label, number, seed, steps, guidance]
    button.click(_said(draw), given, results, **ONE_AT_A_TIME)


def _class_menu(studio: Studio, task: str) -> gr.Dropdown:
    classes = [(name, number) for number, name in enumerate(studio.class_names)]
    if task == "edit":
        return gr.Dropdown(classes, value=None, label="Turn it into")
    value = 0 if classes and task == "generate" else NO_CLASS
    return gr.Dropdown([("any class", NO_CLASS), *classes], value=value, label="Class")


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
