"""Text for people: errors of other libraries, quoted in sentences of ours, and places without their passwords."""

import re

# Of a URL, what stands before an @ in the authority; a container of Azure is written there too, and is no secret.
_USER = re.compile(r"\b(?!abfss?:|wasbs?:)([a-z][a-z0-9+.-]*://)[^\s/?#@\"'<>]+(?:@[^\s/?#@\"'<>]+)*@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:signature|credential|token|secret|password|passwd|pwd|key|keyid|accessid|sig|auth)=)[^\s&;#\"'<>]+",
    re.IGNORECASE,
)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, redacted; "" where there is none."""
    return redact(next((line.strip() for line in str(error).splitlines() if line.strip()), ""))


def redact(text: str) -> str:
    """Replace user, password, and parameters such as signatures and tokens by ***, in every URL of a text.

    For whatever leaves a process: messages, logs, MLflow, JSON files.
    """
    return _PARAMETER.sub(r"\1***", _USER.sub(r"\1***@", text))
