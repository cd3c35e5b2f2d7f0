"""A server of the page on this machine, which asks nothing of any other machine."""

import os
import signal
import tempfile

# gradio and the Hub's client read these when they are imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Uploads and results are files. They go when the server does.
_files = tempfile.TemporaryDirectory(prefix="mtl_diffusion-demo-")
os.environ["GRADIO_TEMP_DIR"] = _files.name

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.middleware.base import BaseHTTPMiddleware  # noqa: E402
from starlette.responses import Response  # noqa: E402

from .page import CSS, build  # noqa: E402
from .studio import Studio  # noqa: E402

# The browser fetches nothing from other hosts, even if gradio's page refers to them.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


async def only_from_here(request, answer) -> Response:
    """Adds the policy to each answer."""
    response = await answer(request)
    response.headers["content-security-policy"] = POLICY
    return response


def serve(pipe, name: str, port: int | None = None, wait: bool = True) -> gr.Blocks:
    """Opens the page, on 127.0.0.1 unless GRADIO_SERVER_NAME says another address.

    Args:
        pipe: a `MultiTaskPipeline`.
        name: of the model, for the heading.
        port: None: the first free one from 7860 on.
        wait: return only when the server is stopped, by Ctrl-C or SIGTERM.

    Raises:
        ValueError: there is no such port.
        OSError: the port is taken.
    """
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"port is {port}; it must be from 1 to {2**16 - 1}")
    if wait:  # SIGTERM would leave the files
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    page = build(Studio(pipe), name)
    page.launch(
        server_port=port,
        prevent_thread_lock=not wait,
        share=False,
        max_file_size="16mb",
        app_kwargs={"middleware": [Middleware(BaseHTTPMiddleware, dispatch=only_from_here)]},
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        css=CSS,
    )
    return page
