"""Addresses of the environment: what clients stumble over works, or is refused by the variable's name."""

from __future__ import annotations

import os

import httpx
import pytest

from job.errors import InputError
from job.host.device import wanted_device
from job.host.proxies import settle_bypass
from job.hub.client import endpoint
from job.hub.origin import HubOrigin
from job.store.s3 import s3_client

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def plain(clean_environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in PROXIES:
        clean_environment.delenv(name, raising=False)
        clean_environment.delenv(name.lower(), raising=False)
    return clean_environment


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_networks_that_need_no_proxy_are_honoured(name: str, plain: pytest.MonkeyPatch) -> None:
    plain.setenv(name, "localhost, .svc,fd00::/8,[::1],10.0.0.0/8,192.168.1.7,https://here.example,host:8080")
    plain.setenv("HF_ENDPOINT", "http://[fd12::5]:8080/")
    plain.setenv("AWS_ENDPOINT_URL", "http://10.1.2.3:9000")
    with pytest.raises(httpx.InvalidURL):  # what the Hub's client says of it
        httpx.Client()
    settle_bypass()
    assert os.environ[name] == "localhost,.svc,fd12::5,::1,10.1.2.3,192.168.1.7,https://here.example,host:8080"
    plain.setenv("HTTP_PROXY", "http://proxy:3128")
    with httpx.Client() as client:
        ways = {
            address: type(client._transport_for_url(httpx.URL(address))._pool).__name__
            for address in ("http://[fd12::5]:8080/x", "http://10.1.2.3:9000/x", "http://elsewhere/x")
        }
    assert list(ways.values()) == ["ConnectionPool", "ConnectionPool", "HTTPProxy"]


def test_an_entry_that_nobody_understands_is_named(plain: pytest.MonkeyPatch) -> None:
    plain.setenv("NO_PROXY", "localhost,fd00::/800,a|b")
    with pytest.raises(InputError) as refused:
        settle_bypass()
    assert [(fault.where, fault.found) for fault in refused.value.faults] == [
        ("NO_PROXY", "'fd00::/800'"),
        ("NO_PROXY", "'a|b'"),
    ]


PASSWORD = "Zq9xKp4LmT7vRw2yB8nC"


@pytest.mark.parametrize(
    "value", [f"user:{PASSWORD}@h:1", f"http//u:{PASSWORD}@h/!", f"http://u:{PASSWORD}/x@127.0.0.1:1"]
)
def test_what_may_hold_a_password_is_not_shown_of_an_entry(value: str, plain: pytest.MonkeyPatch) -> None:
    plain.setenv("NO_PROXY", value)
    with pytest.raises(InputError) as refused:
        settle_bypass()
    assert {fault.where for fault in refused.value.faults} == {"NO_PROXY"}
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [f"user:{PASSWORD}@127.0.0.1:1", f"https:/user:{PASSWORD}@h", f"https://h:{PASSWORD}", f"https://[::1{PASSWORD}",
     "https://exa mple", f"https://h?token={PASSWORD}", f"https://h/x#{PASSWORD}"],
)  # fmt: skip
def test_nor_of_an_endpoint(value: str, plain: pytest.MonkeyPatch) -> None:
    plain.setenv("HF_ENDPOINT", value)
    with pytest.raises(InputError) as refused:
        endpoint()
    assert [fault.where for fault in refused.value.faults] == ["HF_ENDPOINT"]
    assert PASSWORD not in str(refused.value)


def test_an_endpoint_that_the_hubs_client_cannot_be_imported_with_is_refused_before(plain: pytest.MonkeyPatch) -> None:
    plain.setenv("HF_ENDPOINT", "https://[::1")
    with pytest.raises(InputError, match="HF_ENDPOINT is not an address"):
        settle_bypass()


@pytest.mark.parametrize("name", [*PROXIES[:3], "all_proxy", "https_proxy"])
@pytest.mark.parametrize(
    "value", ["socks5h://me:secret-01@proxy:1080", "socks4://proxy:1", "ftp://proxy", "http://proxy:port", "http://"]
)
def test_a_proxy_that_the_hubs_client_cannot_use_is_named(name: str, value: str, plain: pytest.MonkeyPatch) -> None:
    plain.setenv(name, value)
    with pytest.raises(InputError) as refused:
        HubOrigin("hf://org/name", "model")
    (fault,) = refused.value.faults
    assert fault.where == name
    assert "secret-01" not in str(fault)


def test_s3_refuses_the_proxy_of_its_own_scheme_alone(plain: pytest.MonkeyPatch) -> None:
    plain.setenv("AWS_DEFAULT_REGION", "us-east-1")
    plain.setenv("ALL_PROXY", "socks5h://proxy:1080")
    plain.setenv("HTTP_PROXY", "socks5h://proxy:1080")
    s3_client()
    plain.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError) as refused:
        s3_client()
    assert refused.value.faults[0].where == "HTTP_PROXY"


@pytest.mark.parametrize(
    "value", ["http://proxy:3128", "https://me:pass@proxy:3128/", "proxy:3128", "HTTP://proxy", ""]
)
def test_proxies_that_work_are_left_alone(value: str, plain: pytest.MonkeyPatch) -> None:
    for name in PROXIES[:3]:
        plain.setenv(name, value)
    assert endpoint() is None


@pytest.mark.parametrize(
    "value", ["huggingface.co", "hub.example:8080", "ftp://hub", "https://", "//hub", "https://hub:port", "http//hub"]
)
def test_an_endpoint_that_is_not_an_address_is_named(value: str, plain: pytest.MonkeyPatch) -> None:
    plain.setenv("HF_ENDPOINT", value)
    with pytest.raises(InputError) as refused:
        HubOrigin("hf://org/name", "model")
    assert refused.value.faults[0].where == "HF_ENDPOINT"


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "AWS_CA_BUNDLE"])
def test_certificates_that_are_not_there_are_named(name: str, plain: pytest.MonkeyPatch) -> None:
    """At S3 each request failed for its own patience of minutes, and the Hub's client said: No such file."""
    plain.setenv(name, "/no/such.pem")
    with pytest.raises(InputError, match=rf"{name}: there is no such file of certificates \(found '/no/such.pem'\)"):
        (endpoint if name == "SSL_CERT_FILE" else s3_client)()


def test_a_time_limit_that_the_hubs_client_cannot_be_imported_with_is_named(plain: pytest.MonkeyPatch) -> None:
    plain.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "30")
    settle_bypass()
    plain.setenv("HF_HUB_ETAG_TIMEOUT", "1.5")
    with pytest.raises(InputError, match=r"HF_HUB_ETAG_TIMEOUT is not a whole number of seconds \(found '1.5'\)"):
        settle_bypass()


def test_an_empty_variable_is_unset(plain: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "TUNEJOB_DEVICE"):
        plain.setenv(name, "")
    assert endpoint() is None
    assert wanted_device() == "auto"
    plain.setenv("HF_ENDPOINT", "https://hub.example/")
    assert endpoint() == "https://hub.example"
