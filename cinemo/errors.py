"""Errors of other libraries, quoted in sentences of ours."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty; "" where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
