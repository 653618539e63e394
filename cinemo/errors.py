"""Text for messages: the first line of another library's error, and URLs without passwords."""

import re

# User and password, before the @ of a URL. Azure's URLs have the container's name there, which is not secret.
_USER = re.compile(r"\b(?!abfss?:|wasbs?:)([a-z][a-z0-9+.-]*://)[^\s/?#@\"'<>]+(?:@[^\s/?#@\"'<>]+)*@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:signature|credential|token|secret|password|passwd|pwd|key|keyid|accessid|sig|auth)=)[^\s&;#\"'<>]+",
    re.IGNORECASE,
)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, redacted; "" if there is none."""
    return redact(next((line.strip() for line in str(error).splitlines() if line.strip()), ""))


def redact(text: str) -> str:
    """Replace user, password, and parameters such as signatures and tokens by *** in every URL of a text.

    Called on all text that leaves a process: messages, logs, MLflow, JSON files.
    """
    return _PARAMETER.sub(r"\1***", _USER.sub(r"\1***@", text))
