"""Webhooks: a POST to a receiver for each video or batch that has ended, signed (https://www.standardwebhooks.com).

The body has the shape of OpenAI's webhooks, so that `client.webhooks.unwrap` of the openai package takes it.
"""

import asyncio
import base64
import json
import logging
import os
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

from pipelines.serving.http import outbound
from pipelines.serving.http.errors import ApiError
from pipelines.serving.jobs import webhook_events
from pipelines.serving.jobs.database import Database
from pipelines.serving.jobs.webhook_events import Event
from pipelines.serving.settings import ServeSettings

logger = logging.getLogger("ray.serve")

SECRET = "CINEMO_WEBHOOK_SECRET"
AT_ONCE = 64  # deliveries of a process at a time
AT_ONCE_OF_OWNER = 16  # of these, to one owner's receivers, or to that of the settings, because receivers may hang
TIMEOUT_S = 10.0  # of a delivery
POLL_S = 1.0  # seconds between two looks for events that are due


def secret_from_environment(settings: ServeSettings) -> str:
    """The secret of the signatures, if webhooks are used; else "". Raises ValueError for one that is none."""
    if settings.webhooks.url is None and not settings.webhooks.by_request:
        return ""
    secret = os.environ.get(SECRET, "")
    try:
        if secret.startswith("whsec_") and len(base64.b64decode(secret[6:], validate=True)) >= 24:
            return secret
    except ValueError:
        pass  # it is not base64
    raise ValueError(
        f"webhooks: {SECRET} is not a secret; set it to whsec_ and the base64 of 24 bytes or more, such as "
        '"whsec_$(openssl rand -base64 32)", where the service is started'
    )


def url_of_job(settings: ServeSettings, asked: str | None) -> str | None:
    """The column `webhook` of a new job. asked: the request's own URL. Raises ApiError (422) if it cannot be used."""
    if asked is None:
        return None if settings.webhooks.url is None else ""
    if not settings.webhooks.by_request:
        raise ApiError(422, "webhook_url: this service takes none; poll the video, or read its events", "webhook_url")
    try:
        outbound.parse(asked, settings.private_hosts)
    except ValueError as error:
        raise ApiError(422, f"webhook_url: {error}", "webhook_url") from None
    return asked


def message(event: Event, secret: str) -> tuple[str, dict[str, str]]:
    """The body of an event, and its headers, which are signed with the time of this try."""
    now = datetime.now(UTC)
    content = {"id": event.id, "object": "event", "type": event.type, "created_at": int(event.created_at)}
    body = json.dumps({**content, "data": {"id": event.subject}})
    headers = {
        "content-type": "application/json",
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(event.id, now, body),
    }
    return body, headers


class Outbox:
    """Delivers the events of the database, each until its receiver has answered 2xx, or it is too old."""

    def __init__(self, settings: ServeSettings, database: Database, secret: str) -> None:
        """secret: empty if webhooks are not used."""
        self.settings, self.database, self.secret = settings, database, secret
        self.running: dict[asyncio.Task[None], str] = {}  # delivery -> owner (Event.owner)

    async def run(self) -> None:
        """Deliver what is due, by any number of processes at once; ends when it is cancelled."""
        while self.secret:
            free, due = AT_ONCE - len(self.running), list[Event]()
            try:
                if free:
                    retry_s, of_owners = self.settings.webhooks.retry_s, Counter(self.running.values())
                    bounds = (free, retry_s, AT_ONCE_OF_OWNER, of_owners)
                    due = await asyncio.to_thread(webhook_events.take_due, self.database, *bounds)
            except Exception:
                logger.exception("webhooks wait for the database")
            for event in due:
                task = asyncio.create_task(self._deliver(event))
                self.running[task] = event.owner
                task.add_done_callback(self.running.pop)
            if self.running:  # the first that ends may make room for another of its owner
                await asyncio.wait(self.running, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(POLL_S)

    async def _deliver(self, event: Event) -> None:
        facts: dict[str, Any] = {"job": event.subject, "event": event.id}
        try:
            if problem := await self._post(event):
                logger.warning("webhook not delivered, try %d: %s", event.tries, problem, extra=facts)
                give_up_s = self.settings.webhooks.give_up_s
                if await asyncio.to_thread(webhook_events.give_up, self.database, event.id, give_up_s):
                    logger.error("webhook given up after %d tries", event.tries, extra=facts)
            else:
                await asyncio.to_thread(webhook_events.delivered, self.database, event.id)
        except Exception:  # of the database: the event is delivered again
            logger.exception("the delivery of a webhook was not recorded", extra=facts)

    async def _post(self, event: Event) -> str | None:
        """Send an event once; returns why it was not accepted, or None. Redirects are not followed."""
        url, private_hosts = event.url or self.settings.webhooks.url or "", self.settings.private_hosts
        try:
            host = outbound.parse(url, private_hosts).hostname or ""
            body, headers = message(event, self.secret)
            async with (
                outbound.session(host, private_hosts, TIMEOUT_S) as session,
                session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                return None if 200 <= answer.status < 300 else f"{host} answered {answer.status}"
        except Exception as error:  # aiohttp raises many types
            return f"{type(error).__name__}: {error}"
