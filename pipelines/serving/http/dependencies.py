"""Dependencies of the routes: the service, and the owner of the request's API key."""

from typing import Annotated

from fastapi import Depends, Header, Request

from pipelines.serving.service import Service


async def _service(request: Request) -> Service:
    return request.app.state.service


Shared = Annotated[Service, Depends(_service)]


async def _owner(
    service: Shared, authorization: Annotated[str | None, Header(description="Bearer KEY, where keys are set")] = None
) -> str:
    # Basic is for the page alone: browsers would send it along with any site's form to these routes.
    return service.owner(authorization if (authorization or "").lower().startswith("bearer ") else None)


Owner = Annotated[str, Depends(_owner)]


async def _sender(service: Shared, owner: Owner) -> str:
    service.keys.count(owner)
    return owner


Sender = Annotated[str, Depends(_sender)]  # the owner; the request counts towards the limit per minute
