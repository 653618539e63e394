"""Cinemo: animate a still image from a text prompt by predicting motion residuals.

`from cinemo import CinemoPipeline` loads torch and diffusers; `import cinemo` alone loads neither.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cinemo.pipeline import CinemoPipeline

__version__ = "0.1.0"
__all__ = ["CinemoPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "CinemoPipeline":
        from cinemo.pipeline import CinemoPipeline

        return CinemoPipeline
    raise AttributeError(f"module 'cinemo' has no attribute {name!r}")
