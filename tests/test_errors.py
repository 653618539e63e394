"""Passwords and tokens of URLs: in no message, log, JSON file or tracked parameter."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import pipelines.serving  # noqa: F401 - installs the filter of its log
from cinemo.errors import first_line, redact
from pipelines.core import storage, tracking
from pipelines.core.output import Output, Reason, reject

SECRETS = [
    "s3://AKIA123:Pa%2Fss@bucket/a.mp4?endpoint_override=minio",
    "postgresql://cinemo:Pa%2Fss@db.internal/cinemo",
    "postgresql+psycopg://cinemo:p@Pa%2Fss@db.internal/cinemo?sslpassword=Pa%2Fss",
    "https://Pa%2Fss@example.com/a.mp4",
    "zip://a.mp4::https://u:Pa%2Fss@example.com/a.zip",
    "https://bucket.s3.amazonaws.com/a.mp4?X-Amz-Algorithm=A&X-Amz-Credential=Pa%2Fss&X-Amz-Signature=Pa%2Fss",
    "https://x.blob.core.windows.net/c/a.mp4?sv=2024&sig=Pa%2Fss",
    "https://storage.googleapis.com/b/a.mp4?GoogleAccessId=x&Signature=Pa%2Fss&Expires=1",
]
PLAIN = [
    "s3://bucket/x.tar#a@b.mp4@512+700",
    "abfss://container@account.dfs.core.windows.net/a.mp4",
    "https://example.com/a.mp4?frame=3&size=9",
    "models:/animator@champion",
    "/home/a@b/c.mp4",
    "the email is a@b.c: see https://example.com/x",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_secrets_in_urls_are_replaced_wherever_text_leaves(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = OSError(f"\nGET {uri} failed: 403")
    said = [redact(uri), first_line(error), reject({}, "decode", Reason.UNREADABLE, str(error))["message"]]
    storage.put_json(str(tmp_path / "x.json"), {"uri": uri, "list": [uri]})
    said.append((tmp_path / "x.json").read_text())
    with caplog.at_level(logging.WARNING, "ray.serve"):
        try:
            raise error
        except OSError:
            logging.getLogger("ray.serve").exception("no %s", uri)
    said.append(caplog.text)
    for text in said:
        assert "***" in text
        assert "Pa%2Fss" not in text
    assert redact(redact(uri)) == redact(uri)
    assert json.loads((tmp_path / "x.json").read_text())["uri"] == redact(uri)


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_an_output_is_continued_with_another_password(tmp_path: Path) -> None:
    out = Output(str(tmp_path))
    out.claim({"job": "prepare", "input": "https://u:one@example.com/list.csv"})
    assert "one@" not in (tmp_path / "settings.json").read_text()
    out.check({"job": "prepare", "input": "https://u:two@example.com/list.csv"})
    with pytest.raises(ValueError, match=r"other\.csv") as caught:
        out.check({"job": "prepare", "input": "https://u:two@example.com/other.csv"})
    assert "two@" not in str(caught.value)


def test_mlflow_gets_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    values: dict[str, Any] = {"input": SECRETS[0], "tracking_uri": SECRETS[3]}
    with tracking.start("prepare", "s3://k:Pa%2Fss@bucket/out", uri, values) as log:
        log.tags({"train_output": SECRETS[1]})
    run = log.client.get_run(log.run_id)
    assert "Pa%2Fss" not in str(run.data)
    assert run.data.params["input"] == redact(SECRETS[0])
