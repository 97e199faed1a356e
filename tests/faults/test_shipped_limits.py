"""Endless faults against the limits as they are shipped: exit 20 within ten minutes. Minutes long: `make chaos`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.faults.proxy import ENDLESS, Kind, Trouble, proxy_to
from tests.flow.running import Running, tiny, write_spec
from tests.servers import Hub, S3Server

pytestmark = [
    pytest.mark.skipif(not os.environ.get("TUNEJOB_CHAOS"), reason="ten minutes of waiting: set TUNEJOB_CHAOS=1"),
    pytest.mark.timeout(1500),
]
BOUND_SECONDS = 600


@pytest.mark.parametrize("kind", [Kind.SLOW_DOWN, Kind.RESET, Kind.STALL, Kind.DRIP])
def test_a_store_that_never_answers_well(s3: S3Server, bucket: str, tmp_path: Path, kind: Kind) -> None:
    with proxy_to(s3.http) as proxy:
        proxy.order(Trouble(kind, times=ENDLESS))
        spec = write_spec(tmp_path / "spec.json", tiny(f"s3://{bucket}/run"))
        began = time.monotonic()
        running = Running(("run", spec), tmp_path / "scratch", s3.environment() | {"AWS_ENDPOINT_URL": proxy.url})
        ends_in_time(kind, began, running.finish(2 * BOUND_SECONDS).exit_code)


@pytest.mark.parametrize("kind", [Kind.SLOW_DOWN, Kind.STALL, Kind.DRIP_BODY])
def test_a_hub_that_never_answers_well(hub: Hub, tmp_path: Path, kind: Kind) -> None:
    hub.repo("org/name").commit({"config.json": b"{}" * 2000, "model.safetensors": b"x"})
    hub.large_bytes = 1 << 30  # no redirect: every byte goes through the proxy
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", {"/model/source": "hf://org/name"}))
    with proxy_to(hub.endpoint) as proxy:
        proxy.order(Trouble(kind, "GET .*/resolve/.*", times=ENDLESS))
        began = time.monotonic()
        running = Running(("run", spec), tmp_path / "scratch", {"HF_ENDPOINT": proxy.url})
        ends_in_time(kind, began, running.finish(2 * BOUND_SECONDS).exit_code)


def ends_in_time(kind: Kind, began: float, exit_code: int) -> None:
    took = time.monotonic() - began
    print(f"{kind.name}: {took:.0f} s")
    assert exit_code == 20
    assert took < BOUND_SECONDS
