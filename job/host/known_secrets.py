"""Which values are secret: of the environment, of files that it and usual tools name, and what is learned later."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import unquote

from job.host.credentials import names_secret

LONG = 16  # a user's name of so many characters is most likely a token
MOST_BYTES = 1 << 16  # of a file of credentials
WEB = ("http", "https", "ws", "wss", "socks4", "socks4a", "socks5", "socks5h")
NO_PASSWORD = ("", "x-oauth-basic", "x")  # beside a token that is the user's name
ADDRESS = re.compile(
    r"(?:proxy|ur[il]s?|dsn|endpoint|address|host|server|remote|registry|index|broker)$", re.IGNORECASE
)
PORT = re.compile(r"\d{1,5}(?:/|$)")
# Files of several credentials, and variables that hold what is in such files.
FILES_AT_HOME = (".netrc", ".aws/credentials", ".aws/config")
FILE_VARIABLES = ("NETRC", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")
SEVERAL = re.compile(r"(?:netrc|connection_?string|conn_?str|auth_?config|config_?json|credentials)$", re.IGNORECASE)
ASSIGNED = re.compile(
    r"(?:password|passwd|passphrase|secret|token|auth|key)[A-Za-z0-9_.-]{0,40}[\"']?\s*[:=\s]\s*[\"']?([^\s\"',;]+)",
    re.IGNORECASE,
)
KEY_BODY = re.compile(r"[A-Za-z0-9+/=]{40,}")

_LEARNED: list[str] = []


def learn(*values: str | None) -> None:
    """From here on these are secret, too: what a library has found elsewhere than in the environment."""
    _LEARNED.extend({value for value in values if value} - set(_LEARNED))


def learned() -> list[str]:
    """In the order in which they came; it only grows."""
    return list(_LEARNED)


def secret_values(environment: Mapping[str, str]) -> Iterator[str]:
    """Values of variables whose names say what they are, passwords and tokens in addresses, such as a proxy's, and what
    the files hold that are named so. A path is not a secret.
    """
    for name, value in environment.items():
        if names_secret(name) and not os.path.exists(value):
            yield value
        if SEVERAL.search(name):
            yield from _assigned(value)
        yield from _in_addresses(name, value)
    yield from file_secrets(environment)


def file_secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """What is in files of credentials: tokens that variables such as `…_TOKEN_FILE` name, netrc and those of AWS."""
    home = environment.get("HOME")
    paths = [os.path.join(home, name) for name in FILES_AT_HOME] if home else []
    for name, value in environment.items():
        plain = re.sub(r"_(?:FILE|PATH)$", "", name)
        if name in FILE_VARIABLES or names_secret(plain):
            paths.append(value)
    for path in paths:
        text = _read(os.path.expanduser(path)).strip()
        if text and not any(character.isspace() for character in text):
            yield text
        yield from _assigned(text)


def _read(path: str) -> str:
    """The text of a small regular file; empty for anything else."""
    with suppress(OSError, ValueError):
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size <= MOST_BYTES:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read(MOST_BYTES)
    return ""


def _assigned(text: str) -> Iterator[str]:
    """What follows the name of a secret, in any of the usual forms, and the body of private keys."""
    for found in ASSIGNED.finditer(text):
        if not os.path.exists(found[1]):
            yield found[1]
    if "PRIVATE KEY" in text:
        yield from KEY_BODY.findall(text)


def _in_addresses(name: str, value: str) -> Iterator[str]:
    """Passwords, and tokens that take the place of a user, of one address or several."""
    if "@" not in value:
        return
    for address in {value.strip(), *re.split(r"[\s,;|]+", value)}:
        scheme, separator, rest = address.rpartition("://")
        if not separator and not ADDRESS.search(name):
            continue
        user, colon, password = _user(rest).partition(":")
        yield from {password, unquote(password), *re.split(r"[/?#@]", password)}  # others cut it there
        is_token = password in NO_PASSWORD or len(user) >= LONG
        if is_token and (scheme.lower() in WEB if separator else bool(colon) or name.lower().endswith("proxy")):
            yield from {user, unquote(user)}


def _user(rest: str) -> str:
    """What is before the host of an address without its scheme; a password may hold signs that should be coded."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority.rpartition("@")[0]
    before = rest.rpartition("@")[0]
    user, colon, password = before.partition(":")
    return before if colon and "/" not in user and not PORT.match(password) else ""
