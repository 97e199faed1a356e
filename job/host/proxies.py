"""Addresses in the environment that other libraries stumble over: proxies, what needs none, and the Hub's endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from job.errors import Fault, InputError

ENDPOINTS = ("HF_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "TUNEJOB_JUDGE_URL")
BYPASS = ("NO_PROXY", "no_proxy")
WEB, SOCKS = ("http", "https"), ("socks5", "socks5h")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}")
SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
WHOLE = re.compile(r"\s*[0-9]{1,9}\s*")
ENTRY = re.compile(r"[A-Za-z0-9_.:*-]+")  # a host, a domain or an address, perhaps with a port


def settle_bypass() -> None:
    """Writes NO_PROXY as the clients of the Hub and of S3 read it.

    They do not know networks, and one of IPv6 ends the Hub's. A network is replaced by those of our endpoints that are
    addresses in it, so that it is honoured. Raises `InputError` for an entry that
    is none of host, domain, address and network, and for an endpoint or a time limit of the Hub at whose sight its
    client cannot even be imported.
    """
    faults = [
        Fault(
            f"{name} is not a whole number of seconds", where=name, found=ascii(os.environ[name]), expected="such as 30"
        )
        for name in SECONDS
        if os.environ.get(name) and not WHOLE.fullmatch(os.environ[name])
    ]
    try:
        urlsplit(os.environ.get("HF_ENDPOINT", ""))
    except ValueError:
        require_address("HF_ENDPOINT")
    for name in BYPASS:
        if not os.environ.get(name):
            continue
        kept: list[str] = []
        for entry in filter(None, re.split(r"[,\s]+", os.environ[name])):
            plain = entry.removeprefix("[").removesuffix("]")
            network = _network(plain)
            if network is not None:
                kept += _inside(network)
            elif ENTRY.fullmatch(plain) or ("@" not in plain and _is_address(plain)):
                kept.append(plain)
            else:
                wanted = "hosts, domains, addresses and networks, with commas between"
                shown = _shape(entry) if "@" in entry or "://" in entry else ascii(entry)
                faults.append(Fault(f"{name} is not understood", where=name, found=shown, expected=wanted))
        os.environ[name] = ",".join(dict.fromkeys(kept))
    if faults:
        raise InputError(*faults)


def _network(entry: str) -> IPv4Network | IPv6Network | None:
    with suppress(ValueError):
        return ip_network(entry, strict=False) if "/" in entry else None
    return None


def _inside(network: IPv4Network | IPv6Network) -> Iterable[str]:
    """Hosts of our endpoints that are addresses in `network`."""
    for name in ENDPOINTS:
        with suppress(ValueError):
            host = urlsplit(os.environ.get(name, "")).hostname or ""
            if ip_address(host) in network:
                yield host


def require_proxies(*schemes: str, socks: bool = False) -> None:
    """Raises `InputError` naming each variable of `schemes` (http, https, all) whose proxy our clients cannot speak to.

    With `socks` a SOCKS proxy will do where the package for it is installed.
    """
    spoken = (*WEB, *(SOCKS if socks and find_spec("socksio") else ()))
    faults = []
    for name in (name for scheme in schemes for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper())):
        value = os.environ.get(name, "").strip()
        if not value:
            continue
        scheme, _, rest = value.rpartition("://")
        try:
            whole = urlsplit(f"//{rest}")
            understood = bool(whole.hostname) and (whole.port is None or whole.port > 0)
        except ValueError:
            understood = False
        if (scheme or "http").lower() not in spoken or not understood:
            hint = "Name an HTTP proxy, or unset the variable where no proxy is needed"
            plain = scheme.lower() if SCHEME.fullmatch(scheme) else "another form"  # a password may look like one
            found = (plain if scheme else "no scheme") if understood else "no address"
            faults.append(Fault("this proxy cannot be used", where=name, found=found,
                                expected="http://host:port or https://host:port", hint=hint))  # fmt: skip
    if faults:
        raise InputError(*faults)


def require_certificates(name: str) -> None:
    """Raises `InputError` for a variable that names a file of certificates which is not there."""
    path = os.environ.get(name, "")
    if path and not os.path.isfile(path):
        hint = "Mount the file there, or unset the variable"
        raise InputError("there is no such file of certificates", where=name, found=ascii(path), hint=hint)


def require_address(name: str) -> str | None:
    """The http or https address in a variable, without a slash at its end; None where it is unset or empty. Raises
    `InputError` for anything else.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    if not _is_address(value) or not value.isascii() or not value.isprintable() or " " in value:
        wanted = "https://host or http://host:port"
        raise InputError(f"{name} is not an address", where=name, found=_shape(value), expected=wanted)
    return value.rstrip("/")


def _is_address(value: str) -> bool:
    try:
        found = urlsplit(value)
        return found.scheme in WEB and bool(found.hostname) and found.port != 0
    except ValueError:
        return False


def _shape(value: str) -> str:
    """What can be said of a value that may hold a password in any form."""
    scheme, mark, rest = value.partition("://")
    begins = scheme if mark and scheme.lower() in WEB else "no http:// or https://"
    return f"{begins}, then {len(rest or scheme)} characters" if mark else f"{begins}, {len(value)} characters"
