"""The page at /ui, made with Gradio: a photo, a prompt and a slider become a video.

It runs in the ingress's process and calls the same service as the routes. It loads nothing from other sites: no fonts,
no analytics.
"""

import asyncio
import base64
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from fastapi import FastAPI
from gradio import image_utils, processing_utils
from PIL import Image
from pydantic import ValidationError

from pipelines.serving import schema
from pipelines.serving.http import dialect, errors
from pipelines.serving.http.errors import ApiError
from pipelines.serving.service import Service
from pipelines.serving.store import Job

PATH = "/ui"
EXAMPLES = (  # photos that are part of scikit-image
    ("chelsea.png", "the camera zooms in"),
    ("coffee.png", "the camera pans left"),
    ("rocket.jpg", "the camera pans up"),
    ("astronaut.png", "the camera zooms out"),
)
ADVANCED = (  # fields of a request, in the order of their widgets
    "model", "size", "fit", "negative_prompt", "num_inference_steps", "guidance_scale", "fps", "dct_init",
    "dct_cutoff", "dct_timestep", "lora",
)  # fmt: skip
SHOWN = 12  # videos in the history
CACHE_S = 3600  # seconds for which gradio keeps uploaded and shown files
HEAD = """# Cinemo
A photo and a sentence become a short animation. Motion goes from 0 (still) to 19."""


def mount(app: FastAPI, service: Service) -> None:
    """Add the page to an application, below PATH."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")  # its routes fetch URLs, and send runs to other sites
    # A client may send a URL for a file. Gradio would fetch it, or decode a data: URL here, without a limit.
    processing_utils.async_ssrf_protected_download = refuse_url
    image_utils.decode_base64_to_file = refuse_url
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    theme = gr.themes.Base(primary_hue="teal", font=fonts, font_mono=("ui-monospace", "monospace"))
    blocks = Page(service).blocks
    gr.mount_gradio_app(
        app,
        blocks,
        PATH,
        theme=theme,
        footer_links=[],
        show_error=True,
        ssr_mode=False,
        pwa=False,
        max_file_size=service.settings.limits.max_bytes,
        allowed_paths=[service.videos, str(service.copies)],
    )
    blocks.has_launched = True  # gradio checks the paths that clients send only for apps that it launched itself


def refuse_url(*_: Any, **__: Any) -> NoReturn:
    """Refuse a URL sent as a file; replaces the functions with which gradio would fetch or decode it."""
    raise gr.Error("choose a file", print_exception=False)


class Page:
    """The widgets and their handlers. Handlers return the widgets that change, with their new values."""

    def __init__(self, service: Service) -> None:
        self.service = service
        with gr.Blocks(
            title="Cinemo", analytics_enabled=False, fill_width=True, delete_cache=(CACHE_S, CACHE_S)
        ) as self.blocks:
            gr.Markdown(HEAD)
            self.job_id, self.shown_ids = gr.State(""), gr.State([])
            with gr.Row():
                with gr.Column():
                    self.add_inputs()
                with gr.Column():
                    self.add_outputs()
            files = [(str(path), text) for name, text in EXAMPLES if (path := example(name)) is not None]
            if files:
                pairs = [list(pair) for pair in files]
                gr.Examples(pairs, [self.image, self.prompt], label="Examples", cache_examples=False)
            self.history = gr.Gallery(
                label="Your videos, the newest first", columns=6, height="auto", allow_preview=False, elem_id="history"
            )
            self.connect()
        self.blocks.queue(default_concurrency_limit=20)

    def add_inputs(self) -> None:
        """Add photo, prompt, motion, the advanced settings in the order of ADVANCED, and the two buttons."""
        loras = list(self.service.settings.loras)
        default, limits = next(iter(self.service.models.values())), self.service.settings.limits
        known = [served.card.sizes or [served.card.size] for served in self.service.models.values()]
        sizes = list(dict.fromkeys(f"{width}x{height}" for each in known for height, width in each))
        self.image = gr.Image(type="filepath", image_mode=None, label="Photo", elem_id="photo", sources=["upload"])
        self.prompt = gr.Textbox(label="What should happen", value=EXAMPLES[0][1], elem_id="prompt")
        self.motion = gr.Slider(
            0, 19, value=default.card.bucket, step=1, label="Motion (0 still, 19 the most)", elem_id="motion"
        )
        self.seed = gr.Number(label="Seed (-1: random)", value=-1, precision=0, minimum=-1, elem_id="seed")
        with gr.Accordion("Advanced", open=False):
            self.model = gr.Dropdown(list(self.service.models), value=default.name, label="Model")
            self.steps = gr.Slider(1, limits.max_steps, value=default.card.steps, step=1, label="Denoising steps")
            self.guidance = gr.Slider(0, 20, value=default.card.guidance, step=0.5, label="Guidance scale")
            self.advanced = [
                self.model,
                gr.Dropdown(["auto", *sizes], value="auto", label="Size (auto: nearest to the photo's aspect)"),
                gr.Dropdown(["crop", "pad"], value="crop", label="A photo of another aspect"),
                gr.Textbox(label="What should not happen"),
                self.steps,
                self.guidance,
                gr.Slider(1, 30, value=8, step=1, label="Frames a second"),
                gr.Checkbox(True, label="DCTInit: refine the initial noise with the photo"),
                gr.Slider(0, 1, value=0.23, step=0.01, label="DCTInit: share of low frequencies"),
                gr.Slider(0, 999, value=975, step=1, label="DCTInit: noise level of the photo"),
                gr.Dropdown(
                    loras,
                    value=[],
                    multiselect=True,
                    allow_custom_value=True,
                    visible=bool(loras),
                    elem_id="lora",
                    label="Adapters (LoRA); NAME:0.5 makes one half as strong",
                ),
            ]
        with gr.Row():
            self.animate_button = gr.Button("Animate", variant="primary", elem_id="animate")
            self.cancel_button = gr.Button("Cancel", elem_id="cancel")

    def add_outputs(self) -> None:
        """Add the status line, the video, and the photo next to the first frame."""
        self.status = gr.Markdown("Choose a photo, or one of the examples below.", elem_id="status")
        self.preview = gr.Image(label="Preview", visible=False, interactive=False, elem_id="preview", buttons=[])
        self.video = gr.Video(label="Animation", autoplay=True, loop=True, interactive=False, elem_id="video")
        buttons: Any = ["download", "fullscreen"]
        with gr.Row():
            self.before = gr.Image(label="Your photo", interactive=False, buttons=buttons, elem_id="before")
            self.first = gr.Image(label="First frame", interactive=False, buttons=buttons, elem_id="first")

    def connect(self) -> None:
        """Connect the handlers to the buttons, the gallery and the loading of the page."""
        private: dict[str, Any] = {"api_visibility": "private"}
        self.animate_button.click(
            self.animate,
            [self.image, self.prompt, self.motion, self.seed, *self.advanced],
            [self.job_id, self.status, self.preview, self.video, self.before, self.first, self.history, self.shown_ids],
            concurrency_limit=None, show_progress="hidden", **private,
        )  # fmt: skip
        usual = [self.motion, self.steps, self.guidance]
        self.model.change(self.usual_settings, [self.model], usual, show_progress="hidden", **private)
        self.cancel_button.click(self.cancel, [self.job_id], None, concurrency_limit=None, **private)
        self.blocks.load(self.list_history, None, [self.history, self.shown_ids], **private)
        self.history.select(self.open, [self.shown_ids], [self.video, self.first, self.status], **private)

    def usual_settings(self, model: str) -> dict[Any, Any]:
        """Set motion, steps and guidance to those of a model's card."""
        card = self.service.models[model].card
        steps = min(card.steps, self.service.settings.limits.max_steps)
        return {self.motion: card.bucket, self.steps: steps, self.guidance: card.guidance}

    async def animate(
        self, request: gr.Request, photo: str | None, prompt: str, bucket: int, seed: float | None, *advanced: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        """Submit a job, show its progress and previews, and then its video and the history with it."""
        fields = {
            "prompt": prompt or "",
            "motion_bucket": int(bucket),
            "preview": True,
            **dict(zip(ADVANCED, advanced, strict=True)),
        }
        fields["negative_prompt"] = fields["negative_prompt"] or ""  # an empty box is None
        fields["lora"] = fields["lora"] or []
        if seed is not None and seed >= 0:
            fields["seed"] = int(seed)
        try:
            owner = self.owner(request)
            self.service.keys.count(owner)
            async with self.service.slots.hold(owner):
                data = await asyncio.to_thread(Path(photo).read_bytes) if photo else b""
                if not data:
                    raise ApiError(422, "choose a photo first", dialect.IMAGE)
                job: Job | None = await self.service.submit(fields, data, owner)
        except (ApiError, ValidationError) as error:
            yield {self.status: f"**{errors.from_exception(error).message}**"}
            return
        assert job is not None
        job_id = job.id
        yield {self.job_id: job_id, self.video: None, self.first: None, self.before: photo, self.status: line(job)}
        shown = None
        while job is not None and job.is_open:
            job = await self.service.followed.get(job_id)
            changes: dict[Any, Any] = {self.status: line(job)}
            if job is not None and (newest := schema.to_preview(job)) is not None and newest.b64_json != shown:
                shown = newest.b64_json
                changes[self.preview] = gr.update(visible=True, value=Image.open(io.BytesIO(base64.b64decode(shown))))
            yield changes
        hidden = gr.update(visible=False, value=None)
        if job is None or job.status != "completed":
            yield {self.job_id: "", self.preview: hidden}
            return
        yield {self.job_id: "", self.preview: hidden, **await self.result(job), **await self.past(owner)}

    async def cancel(self, job_id: str) -> None:
        """Cancel the job that is shown, if it is still open."""
        if job_id:
            await self.service.cancel(job_id, "cancelled on the page")

    async def list_history(self, request: gr.Request) -> dict[Any, Any]:
        """Show the videos of an API key when the page loads."""
        return await self.past(self.owner(request))

    async def open(self, ids: list[str], chosen: gr.SelectData, request: gr.Request) -> dict[Any, Any]:
        """Show a video of the history again."""
        try:
            return await self.result(await self.service.find(ids[chosen.index], self.owner(request)))
        except ApiError as error:
            return {self.status: f"**{error.message}**"}

    def owner(self, request: gr.Request) -> str:
        """The owner whose jobs a browser may see. The middleware has already refused requests without a valid key."""
        return self.service.owner(request.headers.get("authorization"))

    async def result(self, job: Job) -> dict[Any, Any]:
        """Show a finished job's video, first frame and status."""
        return {
            self.video: str(await self.service.file(job, "video")),
            self.first: str(await self.service.file(job, "thumbnail")),
            self.status: line(job),
        }

    async def past(self, owner: str) -> dict[Any, Any]:
        """Show the newest finished videos of an owner in the gallery, but for pictures, which no player plays."""
        jobs, _ = await asyncio.to_thread(self.service.store.page, owner, None, SHOWN, True)
        done = [job for job in jobs if job.status == "completed" and job.request.get("format") not in ("gif", "webp")]
        pictures = [(str(await self.service.file(job, "thumbnail")), job.request["prompt"]) for job in done]
        return {self.history: pictures, self.shown_ids: [job.id for job in done]}


def example(name: str) -> Path | None:
    """Path of one of scikit-image's photos; None if it is not installed."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    return path if path.is_file() else None


def line(job: Job | None) -> str:
    """The state of a job, as a line of Markdown."""
    if job is None:
        return "Deleted."
    if job.status == "queued":
        return "Waiting for a free replica ..."
    if job.status == "in_progress":
        return f"Animating: {job.progress} %"
    video = schema.to_video(job)
    if job.error is not None:
        return f"**{'Cancelled' if job.error['code'] == 'cancelled' else 'Failed'}**: {job.error['message']}"
    seconds = (job.ended_at or 0) - job.created_at
    return (
        f"Motion **{video.measured_motion_bucket}** measured, {video.motion_bucket} requested; "
        f"seed {video.seed}, {video.num_inference_steps} steps, {seconds:.1f} s"
    )
