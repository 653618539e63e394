"""The embedded model, `builtin:tiny` (docs/model-card.md): a directory beside this file, made by recipes/builtin_tiny.

Its files are beside this one; where `ray job submit --working-dir .` sent this file without them (.rayignore), they are
in the package that is installed on the node.
"""

import logging
from pathlib import Path

NAMES = ("builtin:tiny",)
FORMER = {"builtin:velocity": "builtin:tiny"}  # names of models that are gone, until the next release

logger = logging.getLogger("cinemo")


def find(name: str) -> Path:
    """The directory of a built-in model. Raises ValueError for another name, and where the files are nowhere."""
    if name in FORMER:
        logger.warning("model %s is gone; %s, which edits as well, is taken in its place", name, FORMER[name])
        name = FORMER[name]
    if name not in NAMES:
        raise ValueError(f"model {name} is unknown; the built-in one is {', '.join(NAMES)}")
    folder = name.removeprefix("builtin:")
    for place in (Path(__file__).parent, *installed()):
        if (place / folder / "unet").is_dir():
            return place / folder
    raise ValueError(
        f"model {name}: this copy of the code has no weights, and no installed one was found; install the project on "
        "every node (pip install, in a checkout), or name another model"
    )


def installed() -> list[Path]:
    """Folders like this one of the cinemo packages that pip installed, whichever of them is imported."""
    import json
    from importlib.metadata import distributions
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    found = []
    for package in distributions(name="cinemo"):
        origin = json.loads(package.read_text("direct_url.json") or "{}")
        editable = origin.get("dir_info", {}).get("editable", False)  # then only a pointer to a checkout is installed
        root = url2pathname(urlsplit(origin["url"]).path) if editable else str(package.locate_file(""))
        found.append(Path(root) / "cinemo" / "builtin")
    return found
