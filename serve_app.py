"""`serve run serve_app:app [model=MODEL] [output=URI] ...`: animations over HTTP.

Settings: ServeSettings in pipelines/serving/settings.py.
"""

from ray import serve

from pipelines.serving.deploy import build
from pipelines.serving.settings import ServeSettings


def app(settings: ServeSettings) -> serve.Application:
    """Build the application for Serve. Raises ValueError for invalid settings, before anything is started."""
    return build(settings)
