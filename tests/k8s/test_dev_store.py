"""The try-out's store, started as its manifest says; only the ports and the folder are other ones."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from pathlib import Path

import pytest
from boto3.session import Session
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.k8s.render import Document, only
from tests.servers import _free_ports

READY_SECONDS = 60


def client(port: int, keys: list[str]):
    settings = Config(connect_timeout=2, read_timeout=20, retries={"max_attempts": 1})
    return Session(*keys, region_name="us-east-1").client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", config=settings
    )


def test_the_store_takes_the_keys_of_its_secret_and_makes_buckets(
    manifests: dict[str, list[Document]], tmp_path: Path
) -> None:
    documents = manifests["components/dev-object-store"]
    (container,) = only(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    secret = {name: base64.b64decode(value).decode() for name, value in only(documents, "Secret")["data"].items()}
    keys = [secret["AWS_ACCESS_KEY_ID"], secret["AWS_SECRET_ACCESS_KEY"]]
    s3, master, volume, filer = _free_ports(4)
    changed = {
        "-dir=/data": f"-dir={tmp_path}",
        "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1",
        "-s3.port=8333": f"-s3.port={s3}",
    }
    assert set(changed) <= set(container["args"])
    here = ["-ip=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command = [
        Path(sys.executable).parent / container["command"][0],
        *(changed.get(word, word) for word in container["args"]),
        *here,
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=secret, stdout=log, stderr=log, cwd=tmp_path)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                client(s3, keys).put_object(Bucket="first", Key="a", Body=b"x" * (1 << 20))
                break
            except (BotoCoreError, ClientError):
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.5)
        for bucket in ("data", "models", "checkpoints"):
            client(s3, keys).put_object(Bucket=bucket, Key="a", Body=b"x")
        assert client(s3, keys).get_object(Bucket="models", Key="a")["Body"].read() == b"x"
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client(s3, [keys[0], "wrong"]).put_object(Bucket="models", Key="b", Body=b"x")
    finally:
        process.kill()
        process.wait()
