"""The Ray Serve application: one deployment for each model, and the ingress that answers HTTP."""

import asyncio
import logging
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from cinemo.garbage import exempt_from_collections
from pipelines.core import models, storage
from pipelines.serving import served_models, webhooks
from pipelines.serving.api import create_app
from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.http import api_keys
from pipelines.serving.metrics import Metrics, Tracker
from pipelines.serving.replica import Animator
from pipelines.serving.service import Service
from pipelines.serving.settings import Replicas, ServeSettings
from pipelines.serving.store import Job, Store

logger = logging.getLogger("ray.serve")

# Requests are counted in our metrics; log lines carry the job's id.
AS_JSON = {"encoding": "JSON", "enable_access_log": False}


class Ingress:
    """Answers HTTP, and watches its jobs until they end."""

    def __init__(
        self,
        settings: dict[str, Any],
        served: dict[str, str],
        animators: dict[str, DeploymentHandle],
        known_keys: list[str],
        webhook_secret: str,
    ) -> None:
        """served: name -> MODEL. animators: name -> its deployment. known_keys: hashes of the API keys."""
        self.known_keys, self.webhook_secret = known_keys, webhook_secret
        self.settings, self.animators = ServeSettings(**settings), animators
        self.models = {name: served_models.look_up(name, model, self.settings.loras) for name, model in served.items()}
        self.store = Store(self.settings.store_url)
        self.metrics = Metrics()
        self.tracker = Tracker(self.settings) if self.settings.track else None
        self.waited_for = set(animators) if self.settings.replicas.min_replicas else set()  # models without a replica
        self.search: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve, once, after the constructor."""
        calls = {name: handle.animate.remote for name, handle in self.animators.items()}
        dispatcher = Dispatcher(self.settings, self.store, calls, self.ended)
        service = Service(self.settings, self.store, dispatcher, self.models, self.known_keys, self.webhook_secret)
        app = create_app(service, self.metrics, self.not_ready)
        if self.settings.page and find_spec("gradio") is not None:
            from pipelines.serving import page

            page.mount(app, service)
        exempt_from_collections()
        return app

    def ended(self, job: Job, facts: dict[str, Any]) -> None:
        """Record that a job watched by this process has ended. facts: as its replica returned them."""
        self.metrics.ended(job, facts)
        if self.tracker is not None:
            self.tracker.ended(job)

    async def not_ready(self) -> list[str]:
        """Names of models that should have a replica, none of which this process has seen running."""
        if self.waited_for:
            if self.search is None or self.search.done():
                self.search = asyncio.create_task(asyncio.to_thread(self.find_replicas))
            await asyncio.wait([self.search], timeout=2)
        return sorted(self.waited_for)

    def find_replicas(self) -> None:
        """Ask Serve's controller which models have a running replica; a call to a replica could wait for its videos."""
        try:
            deployments = serve.status().applications[serve.get_replica_context().app_name].deployments
        except Exception as error:
            logger.info("the controller does not answer: %s", error)
            return
        running = {name for name, found in deployments.items() if ReplicaState.RUNNING in found.replica_states}
        self.waited_for = {name for name in self.waited_for if self.animators[name].deployment_name not in running}


def build(settings: ServeSettings) -> serve.Application:
    """Build the application for `serve run` and `serve deploy`. Raises ValueError for a model that does not exist."""
    known_keys = api_keys.from_environment(settings)
    if settings.keys_file is not None:
        api_keys.from_file(settings.keys_file)  # report what is wrong in it now
    webhook_secret = webhooks.secret_from_environment(settings)
    served, loras = find_models(settings)
    keys_file = settings.keys_file and storage.absolute(settings.keys_file)
    places = {"output": settings.place, "store": settings.store_url, "keys_file": keys_file, "loras": loras}
    own_model = {"model": "builtin:tiny", "models": {}}  # each replica gets its own
    shared = {**settings.model_dump(), **places, **own_model}
    animators = {
        name: animator_deployment(settings.replicas, number).bind(shared, name, model)
        for number, (name, model) in enumerate(served.items())
    }
    return ingress_deployment(settings).bind(shared, served, animators, known_keys, webhook_secret)


def find_models(settings: ServeSettings) -> tuple[dict[str, str], dict[str, str]]:
    """Find the models and the LoRA adapters, each as name -> place that is valid in every process.

    Raises ValueError for a model that does not exist and for an adapter that fits no model: otherwise replicas would
    die of it, one after another.
    """
    served, loras = (
        {name: models.absolute(place, settings.tracking_uri, settings.place) for name, place in places.items()}
        for places in (settings.served, settings.loras)
    )
    for model in served.values():
        models.resolve(model)
    for name, place in loras.items():
        if all(served_models.find_adapter(name, place, model) is None for model in served.values()):
            raise ValueError(f"loras: {name} ({settings.loras[name]}) is an adapter of none of {', '.join(served)}")
    return served, loras


def animator_deployment(replicas: Replicas, number: int) -> serve.Deployment:
    """Define the deployment of the replicas of one model. number: of the model, from 0, for the deployment's name."""
    return serve.deployment(Animator).options(
        name=f"animator-{number}",
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "initial_replicas": max(replicas.min_replicas, 0),
            "target_ongoing_requests": replicas.target_requests,
            "upscale_delay_s": replicas.upscale_delay_s,
            "downscale_delay_s": replicas.downscale_delay_s,
        },
        # The running batch and the next one, which waits here so that the replica is never idle.
        max_ongoing_requests=2 * replicas.batch,
        max_queued_requests=-1,  # the store bounds the queue
        graceful_shutdown_timeout_s=replicas.drain_s,
        graceful_shutdown_wait_loop_s=1,
        health_check_period_s=10,
        health_check_timeout_s=120,
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        logging_config=AS_JSON,
    )


def ingress_deployment(settings: ServeSettings) -> serve.Deployment:
    """Define the deployment that answers HTTP."""
    return serve.deployment(serve.ingress()(Ingress)).options(
        name="ingress",
        num_replicas=settings.ingress_replicas,
        max_surge_percent=100,  # a new version starts before the old one stops, so that HTTP is always answered
        max_ongoing_requests=1000,  # most of them are waiting: event streams, and /v1/videos/sync
        ray_actor_options={"num_cpus": settings.ingress_cpus},
        health_check_period_s=5,
        logging_config=AS_JSON,
    )
