"""Credentials that boto3 finds in a file or gets from a service are masked once used, though in no variable."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from job.errors import JobError
from job.host.log import Log
from job.store.s3 import S3Store

SECRET, SESSION, BOUGHT_WITH = (
    "canary/secret+key=0012%&",
    "canary-session//token++0013==",
    "eyJcanary0014.eyJcanary0014.canary0014canary",
)
EXPIRES = "2099-01-01T00:00:00Z"
STS = f"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>ASIAX</AccessKeyId><SecretAccessKey>{SECRET.replace("&", "&amp;")}</SecretAccessKey>
<SessionToken>{SESSION}</SessionToken>
<Expiration>{EXPIRES}</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


class Cloud(BaseHTTPRequestHandler):
    """S3 that quotes in its refusal whatever it knows; and the two services that give credentials."""

    def do_POST(self) -> None:  # to STS
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, STS)

    def do_GET(self) -> None:
        if self.path == "/credentials":
            found = {"AccessKeyId": "ASIAX", "SecretAccessKey": SECRET, "Token": SESSION, "Expiration": EXPIRES}
            self._answer(200, json.dumps(found) if self.headers["Authorization"] == BOUGHT_WITH else "{}")
        else:
            quoted = f"{SECRET} {self.headers['x-amz-security-token']} {BOUGHT_WITH}".replace("&", "&amp;")
            self._answer(403, f"<Error><Code>AccessDenied</Code><Message>{quoted}</Message></Error>")

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def cloud() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("way", ["file", "container", "web identity"])
def test_what_is_found_elsewhere_is_masked(way: str, clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = Log(io.StringIO(), json_lines=True)  # before anything is found
    token = tmp_path / "token"
    with cloud() as address:
        variables = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
        if way == "file":
            keys = {"aws_access_key_id": "ASIAX", "aws_secret_access_key": SECRET, "aws_session_token": SESSION}
            (tmp_path / "file").write_text(
                "\n".join(["[default]", *(f"{name} = {value}" for name, value in keys.items())])
            )
            variables["AWS_SHARED_CREDENTIALS_FILE"] = str(tmp_path / "file")
        elif way == "container":
            variables["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{address}/credentials"
            variables["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = str(token)
        else:
            variables |= {"AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": str(token)}
        token.write_text(BOUGHT_WITH)
        for name, value in variables.items():
            clean_environment.setenv(name, value)
        with pytest.raises(JobError, match="canary") as refused:  # the attack is real
            S3Store("s3://bucket/run").list()
    assert SESSION in str(refused.value)
    log("failed", message=str(refused.value), escaped=repr(str(refused.value)))
    assert isinstance(log.stream, io.StringIO)
    said = log.stream.getvalue().replace(BOUGHT_WITH, "") if way == "file" else log.stream.getvalue()
    assert "canary" not in said
    assert said.count("[secret]") >= 4
