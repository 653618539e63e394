"""The page at /ui: a photo, a prompt and a slider become a video, with Gradio, in the ingress's own process.

Knows widgets, and the same service that the routes call. No request of it leaves the machine: no fonts, no analytics.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError

from pipelines.serving import body, errors, schema
from pipelines.serving.errors import ApiError
from pipelines.serving.service import Service
from pipelines.serving.store import Job

PATH = "/ui"
POLL_S = 0.3
EXAMPLES = (  # scikit-image's own photos, which travel with it
    ("chelsea.png", "the camera zooms in"),
    ("coffee.png", "the camera pans left"),
    ("rocket.jpg", "the camera pans up"),
    ("astronaut.png", "the camera zooms out"),
)
SHOWN = 12  # videos of the history
HEAD = """# Cinemo
A photo and a sentence become a short animation. Motion goes from 0 (still) to 19."""


def mount(app: FastAPI, service: Service) -> None:
    """Serve the page below PATH of an application. Raises ImportError where gradio is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import gradio as gr

    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    theme = gr.themes.Base(primary_hue="teal", font=fonts, font_mono=("ui-monospace", "monospace"))
    gr.mount_gradio_app(
        app,
        build(service),
        PATH,
        theme=theme,
        footer_links=[],
        show_error=True,
        ssr_mode=False,
        pwa=False,
        max_file_size=service.settings.limits.max_bytes,
        allowed_paths=[service.videos, str(service.copies)],
    )


def build(service: Service) -> Any:
    """The widgets, and what they do."""
    import gradio as gr

    default = next(iter(service.models.values()))
    with gr.Blocks(title="Cinemo", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(HEAD)
        job_id = gr.State("")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", image_mode=None, label="Photo", elem_id="photo", sources=["upload"])
                prompt = gr.Textbox(label="What should happen", value=EXAMPLES[0][1], elem_id="prompt")
                motion = gr.Slider(0, 19, value=10, step=1, label="Motion (0 still, 19 the most)", elem_id="motion")
                seed = gr.Number(label="Seed (-1: random)", value=-1, precision=0, minimum=-1, elem_id="seed")
                with gr.Accordion("Advanced", open=False):
                    model = gr.Dropdown(list(service.models), value=default.name, label="Model")
                    negative = gr.Textbox(label="What should not happen")
                    steps = gr.Slider(
                        1, service.settings.limits.max_steps, value=default.card.steps, step=1, label="Denoising steps"
                    )
                    guidance = gr.Slider(0, 20, value=default.card.guidance, step=0.5, label="Guidance scale")
                    fps = gr.Slider(1, 30, value=8, step=1, label="Frames a second")
                    dct = gr.Checkbox(True, label="DCTInit: refine the initial noise with the photo")
                    cutoff = gr.Slider(0, 1, value=0.23, step=0.01, label="DCTInit: share of low frequencies")
                    timestep = gr.Slider(0, 999, value=975, step=1, label="DCTInit: noise level of the photo")
                key = gr.Textbox(label="API key", type="password", visible=bool(service.keys), elem_id="key")
                with gr.Row():
                    animate = gr.Button("Animate", variant="primary", elem_id="animate")
                    stop = gr.Button("Cancel", elem_id="cancel")
            with gr.Column():
                status = gr.Markdown("Choose a photo, or one of the examples below.", elem_id="status")
                video = gr.Video(label="Animation", autoplay=True, loop=True, interactive=False, elem_id="video")
                with gr.Row():
                    before = gr.Image(
                        label="Your photo", interactive=False, buttons=["download", "fullscreen"], elem_id="before"
                    )
                    first = gr.Image(
                        label="First frame", interactive=False, buttons=["download", "fullscreen"], elem_id="first"
                    )
        files = [(str(path), sentence) for name, sentence in EXAMPLES if (path := example(name)) is not None]
        if files:
            gr.Examples([list(pair) for pair in files], [image, prompt], label="Examples", cache_examples=False)
        history = gr.Gallery(
            label="Your videos, the newest first", columns=6, height="auto", allow_preview=False, elem_id="history"
        )
        shown = gr.State([])  # ids of the gallery's pictures

        async def run(
            photo: str | None, text: str, bucket: int, number: float | None, api_key: str, *advanced: Any
        ) -> AsyncIterator[dict[Any, Any]]:
            names = ("model", "negative_prompt", "num_inference_steps", "guidance_scale", "fps", "dct_init",
                     "dct_cutoff", "dct_timestep")  # fmt: skip
            fields = {"prompt": text or "", "motion_bucket": int(bucket), **dict(zip(names, advanced, strict=True))}
            fields["negative_prompt"] = fields["negative_prompt"] or ""  # an empty box is None
            if number is not None and number >= 0:
                fields["seed"] = int(number)
            try:
                owner = service.owner(api_key)
                data = await asyncio.to_thread(Path(photo).read_bytes) if photo else b""
                if not data:
                    raise ApiError(422, "choose a photo first", body.IMAGE)
                job: Job | None = await service.submit(fields, data, owner)
            except (ApiError, ValidationError) as error:
                yield {status: f"**{sentence_of(error)}**"}
                return
            assert job is not None
            started = job.id
            yield {job_id: started, video: None, first: None, before: photo, status: line(job)}
            while job is not None and job.is_open:
                await asyncio.sleep(POLL_S)
                job = await asyncio.to_thread(service.store.get, started)
                yield {status: line(job)}
            if job is None or job.status != "completed":
                yield {job_id: ""}
                return
            yield {job_id: "", **await result(job), **await past(owner)}

        async def result(job: Job) -> dict[Any, Any]:
            return {
                video: str(await service.file(job, "video")),
                first: str(await service.file(job, "thumbnail")),
                status: line(job),
            }

        async def cancel(started: str) -> None:
            if started:
                await service.cancel(started, "cancelled on the page")

        async def past(owner: str) -> dict[Any, Any]:
            jobs, _ = await asyncio.to_thread(service.store.page, owner, None, SHOWN, True)
            done = [job for job in jobs if job.status == "completed"]
            pictures = [(str(await service.file(job, "thumbnail")), job.request["prompt"]) for job in done]
            return {history: pictures, shown: [job.id for job in done]}

        async def begin(api_key: str) -> dict[Any, Any]:
            try:
                return await past(service.owner(api_key))
            except ApiError:
                return {status: "Enter your API key to begin."}

        async def again(api_key: str, ids: list[str], chosen: gr.SelectData) -> dict[Any, Any]:
            try:
                job = await service.find(ids[chosen.index], service.owner(api_key))
                return await result(job)
            except ApiError as error:
                return {status: f"**{error.message}**"}

        advanced_inputs = [model, negative, steps, guidance, fps, dct, cutoff, timestep]
        outputs = [job_id, status, video, before, first, history, shown]
        animate.click(
            run, [image, prompt, motion, seed, key, *advanced_inputs], outputs, concurrency_limit=None,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        stop.click(cancel, [job_id], None, concurrency_limit=None, api_visibility="private")
        page.load(begin, [key], [history, shown, status], api_visibility="private")
        key.submit(begin, [key], [history, shown, status], api_visibility="private")
        history.select(again, [key, shown], [video, first, status], api_visibility="private")
    page.queue(default_concurrency_limit=20)
    return page


def example(name: str) -> Path | None:
    """A photo that scikit-image brings along, None where it does not."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    return path if path.is_file() else None


def line(job: Job | None) -> str:
    """Where a job is, in a line of Markdown."""
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
        f"Motion **{video.measured_motion_bucket}** measured, {video.motion_bucket} asked for; "
        f"seed {video.seed}, {video.num_inference_steps} steps, {seconds:.1f} s"
    )


def sentence_of(error: ApiError | ValidationError) -> str:
    """What was wrong with a request."""
    return error.message if isinstance(error, ApiError) else errors.from_validation(error.errors()).message
