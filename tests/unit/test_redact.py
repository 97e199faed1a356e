"""No spelling of a secret passes the redactor, nothing else is taken out; what cannot be sent is refused by name."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import pprint
import re
import shlex
import textwrap
import urllib.parse
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from job.errors import InputError
from job.errors.facts import failure_facts
from job.host.child import without_secrets
from job.host.credentials import settle_credentials
from job.host.known_secrets import learn
from job.host.log import Log
from job.host.proxies import require_proxies
from job.host.redact import Redactor

PLAIN = "hf_canary0004canary0004canary0004"
ODD = "canary/secret+key=0002%&\"q\\b'<x>n7"
SECRETS = {
    "HF_TOKEN": PLAIN,
    "AWS_SECRET_ACCESS_KEY": ODD,
    "TUNEJOB_WEBHOOK_KEY": "canary-hook-0007-hook",
    "HTTPS_PROXY": "http://me:canary%2Fproxy08proxy@p:1",
}
VALUES = {**SECRETS, "HTTPS_PROXY": "canary/proxy08proxy"}
MAY_SHOW = 7  # characters in a row: less than half of the shortest canary


def wrapped(text: str, width: int = 20) -> str:
    return "\n    ".join(textwrap.wrap(text, width, break_on_hyphens=False))


def in_pieces(text: str, between: str) -> str:
    return between.join(text[at : at + 5] for at in range(0, len(text), 5))


def header(value: str) -> str:
    message = Message()
    message["Authorization"] = f"Bearer {value}"
    return str(message)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "itself": str,
    "repr": repr,
    "repr of bytes": lambda v: repr(v.encode()),
    "repr with its line break": lambda v: repr(f"Bearer {v}\n"),
    "repr in JSON in JSON": lambda v: json.dumps({"message": json.dumps([f"Illegal header value {v + chr(10)!r}"])}),
    "JSON": json.dumps,
    "JSON as a browser's": lambda v: (
        json.dumps(v).replace("&", "\\u0026").replace("<", "\\u003c").replace("+", "\\u002B")
    ),
    "URL-coded": urllib.parse.quote,
    "URL-coded, all": lambda v: urllib.parse.quote(v, safe=""),
    "URL-coded, lower case": lambda v: urllib.parse.quote(v, safe="").replace("%2F", "%2f").replace("%2B", "%2b"),
    "URL-coded twice": lambda v: urllib.parse.quote(urllib.parse.quote(v, safe=""), safe=""),
    "every byte URL-coded": lambda v: "".join(f"%{byte:02X}" for byte in v.encode()),
    "base64": lambda v: base64.b64encode(v.encode()).decode(),
    "base64 for addresses": lambda v: base64.urlsafe_b64encode(v.encode()).decode(),
    "base64 with its line break": lambda v: base64.b64encode(f"{v}\n".encode()).decode(),
    "basic header": lambda v: "Authorization: Basic " + base64.b64encode(f"user:{v}".encode()).decode(),
    "basic header, no name": lambda v: "Basic " + base64.b64encode(f":{v}".encode()).decode(),
    "basic header, another length": lambda v: repr({"authorization": b"Basic " + base64.b64encode(f"me:{v}".encode())}),
    "basic header in an address": lambda v: urllib.parse.quote(base64.b64encode(f"x:{v}".encode()).decode(), safe=""),
    "base64 in lines": lambda v: base64.encodebytes(f"{'u' * 60}:{v}".encode()).decode(),
    "hexadecimal": lambda v: v.encode().hex(),
    "header dump": header,
    "raw request": lambda v: repr(f"GET / HTTP/1.1\r\nX-Api-Key: {v}\r\n".encode()),
    "HTML": lambda v: v.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;"),
    "HTML, twice": lambda v: html.escape(html.escape(v)),
    "HTML in numbers": lambda v: "".join(f"&#{ord(letter)};" for letter in v),
    "HTML in numbers of 16": lambda v: "".join(f"&#X{ord(letter):04X};" for letter in v),
    "Markdown's signs": lambda v: re.sub(r"[^0-9A-Za-z]", lambda found: f"&#{ord(found[0])};", v),
    "XML": lambda v: quoteattr(v, {"'": "&apos;"}),
    "hexadecimal in pairs": lambda v: v.encode().hex(":"),
    "hexadecimal in capitals": lambda v: v.encode().hex().upper(),
    "a list of bytes": lambda v: str(list(v.encode())),
    "octal": lambda v: "".join(f"\\{byte:03o}" for byte in v.encode()),
    "Unicode escapes": lambda v: "".join(f"\\U{ord(letter):08x}" for letter in v),
    "Unicode escapes in braces": lambda v: "".join(f"\\u{{{ord(letter):x}}}" for letter in v),
    "URL-coded as by old browsers": lambda v: "".join(f"%u{ord(letter):04X}" for letter in v),
    "base64 without its end": lambda v: base64.urlsafe_b64encode(f"oauth2:{v}".encode()).decode().rstrip("="),
    "in colours": lambda v: in_pieces(v, "\x1b[0m\x1b[1;36m"),
    "in colours, as JSON": lambda v: json.dumps(in_pieces(v, "\x1b[1m")),
    "in colours, as repr": lambda v: repr(in_pieces(v, "\x1b[1m")),
    "in a frame": lambda v: in_pieces(v, " │\n│ "),
    "in a frame, as JSON": lambda v: json.dumps(in_pieces(v, " │\n│ ")),
    "in pieces of pprint": lambda v: pprint.pformat(v.encode(), width=16),
    "with soft hyphens": lambda v: in_pieces(v, "\u00ad"),
    "with spaces of no width, as JSON": lambda v: json.dumps(in_pieces(v, "\u200b")),
    "quoted for a shell": shlex.quote,
    "quoted in CSV": lambda v: '"' + v.replace('"', '""') + '"',
    "quoted in SQL": lambda v: "'" + v.replace("'", "''") + "'",
    "wrapped": wrapped,
    "wrapped, then repr": lambda v: repr(wrapped(v)),
    "cut after": lambda v: v[: len(v) * 2 // 3] + "...",
    "cut before": lambda v: "..." + v[len(v) // 3 :],
}


def shown(text: str, value: str) -> int:
    """Most characters of `value` in a row that `text` holds."""
    return max(
        (end - start for end in range(len(value) + 1) for start in range(end) if value[start:end] in text), default=0
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_secret_is_left(spelling: str) -> None:
    redact = Redactor(SECRETS)
    for value in VALUES.values():
        text = SPELLINGS[spelling](value)
        masked = redact(f"before {text} after")
        assert "[secret]" in masked
        assert (masked[:7], masked[-6:]) == ("before ", " after")
        if spelling not in ("cut after", "cut before"):  # there a third may stay
            coded = base64.b64encode(value.encode()).decode()
            assert max(shown(masked, value), shown(masked, coded), shown(masked, value.encode().hex())) < MAY_SHOW, (
                masked
            )


def test_json_stays_json() -> None:
    redact = Redactor(SECRETS)
    for value in VALUES.values():
        for text in (value, repr(value), f"\\{value}", f'"{value}"', json.dumps(value), f"{value}\\"):
            assert "[secret]" in json.loads(redact(json.dumps({"message": text})))["message"]


IN_TWO = [
    "canary01 canary02",
    "canary01\ncanary02",
    "canary01\r\n\tcanary02\n",
    " canary01canary02\n",
    "canary01%0Acanary02",
]


@pytest.mark.parametrize("value", IN_TWO)
def test_both_parts_of_a_credential_with_white_space_are_secret(value: str) -> None:
    redact = Redactor({"HF_TOKEN": value})
    for text in (
        value,
        repr(value),
        json.dumps(repr(value)),
        urllib.parse.quote(value),
        value.split()[0],
        value.split()[-1],
    ):
        masked = redact(f"<{text}>")
        assert "canary0" not in masked


def test_nothing_else_is_taken_out() -> None:
    text = "step 4 %41 \\u0041 C:\\new\\table a&amp;b 100 % of canary " + "".join(map(chr, range(32, 1000)))
    assert Redactor(SECRETS)(text) == text
    harmless = {"HF_TOKEN": "", "AWS_SECRET_ACCESS_KEY": "abc", "PATH": "/usr/bin", "A_CREDENTIALS": "/usr/bin"}
    assert Redactor(harmless)("/usr/bin abc") == "/usr/bin abc"


def test_a_failure_is_masked_before_it_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut in the middle of a secret is not the secret that is looked for any more."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    log = Log(io.StringIO(), json_lines=True)
    for before in range(60, 96):
        error = InputError(f"{'x' * (before + 224)}{PLAIN}")
        error.faults = (type(error.faults[0])("m", found="x" * before + PLAIN, hint="y" * before + ODD), *error.faults)
        facts = [
            *failure_facts(log.clean(error), "fetch").values(),
            *failure_facts(InputError(*error.faults[1:]), "fetch").values(),
        ]
        assert all(shown(str(text), value) < MAY_SHOW for text in facts for value in (PLAIN, ODD)), facts


def test_a_child_that_reaches_no_server_has_no_credential() -> None:
    assert without_secrets(
        {**SECRETS, "AWS_REGION": "x", **dict.fromkeys(("WANDB_API_KEY", "TUNEJOB_JUDGE_KEY"), "k")}
    ).keys() == {
        "AWS_REGION",
        "HTTPS_PROXY",
    }


SENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
        "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
        "TUNEJOB_WEBHOOK_KEY", "TUNEJOB_JUDGE_KEY")  # fmt: skip


@pytest.mark.parametrize("ending", ["\n", "\r\n", " ", "\t", "\u00a0", "\ufeff", "\u200b\n"])
def test_white_space_at_the_ends_is_taken_off(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SENT, "AWS_REGION", "HF_ENDPOINT"):
        monkeypatch.setenv(name, f"{ending}canary0001{ending}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", ending)
    settle_credentials()
    assert {os.environ[name] for name in (*SENT, "AWS_REGION", "HF_ENDPOINT")} == {"canary0001"}
    assert "AWS_ENDPOINT_URL" not in os.environ


@pytest.mark.parametrize("inside", [" ", "\n", "\r\n", "\t", "\u00a0", "\u200b", "\x1b", "ä", "\udc80"])
def test_a_credential_that_cannot_be_sent_is_refused_by_its_name(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SENT:
        monkeypatch.setenv(name, f"canary01{inside}canary02")
    monkeypatch.setenv("SOMEBODY_ELSES_PASSWORD", "may be anything")
    with pytest.raises(InputError) as refused:
        settle_credentials()
    assert [fault.where for fault in refused.value.faults] == sorted(SENT, key=list(os.environ).index)
    assert "canary" not in str(refused.value)


NAMES = ["GITHUB_PAT", "GH_TOKEN", "PGPASSWORD", "SSH_PASSPHRASE", "AZURE_DEVOPS_EXT_PAT", "MYSQL_PWD", "SMTP_PASS",
         "REDIS_AUTH", "DOCKER_CREDS", "AZURE_STORAGE_ACCOUNT_KEY",
         "AWS_CONTAINER_AUTHORIZATION_TOKEN", "KAGGLE_KEY_SECRET"]  # fmt: skip
PASSWORD = "Zq9xKp4LmT7vRw2yB8nC"
ADDRESSES = {
    "HTTPS_PROXY": [f"user:{PASSWORD}@proxy:3128", f"{PASSWORD}@proxy:3128", f"http://{PASSWORD}@proxy:3128",
                    f"socks5h://me:{PASSWORD}@p", f"http://user:{PASSWORD}/x@proxy:1", f"http://us@er:{PASSWORD}@p:1",
                    f"user:{PASSWORD}@proxy"],
    "all_proxy": [f"user:{PASSWORD}@[::1]:3128"],
    "PIP_EXTRA_INDEX_URL": [f"https://plain.example https://{PASSWORD}@a.example/simple",
                            f"https://{PASSWORD}:x-oauth-basic@github.com/x"],
    "SENTRY_DSN": [f"https://{PASSWORD}@o1.ingest.example/2"],
    "ANYTHING": [f"amqp://me:{PASSWORD}@host/v", f"https://a:b@c,https://me:{PASSWORD}@host",
                 f"https://{PASSWORD}:{PASSWORD}@h"],
    "NETRC": [f"machine hub.example login me password {PASSWORD}"],
    "AZURE_CONNECTION_STRING": [
        f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={PASSWORD};EndpointSuffix=x"
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, PASSWORD) for name in NAMES), *((name, value) for name, values in ADDRESSES.items() for value in values)],
)
def test_every_usual_name_and_form_of_a_credential_counts(name: str, value: str) -> None:
    masked = Redactor({name: value})(
        f"cannot reach {value} as {base64.b64encode(f'me:{PASSWORD}'.encode()).decode()} <{PASSWORD}>"
    )
    assert "<[secret]>" in masked
    assert shown(masked, PASSWORD) < MAY_SHOW


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("GIT_REMOTE", "ssh://ubuntu@host/x", "ubuntu"),
        ("GIT_REMOTE", "git@github.com:organisation/repository", "organisation"),
        ("IMAGE", "registry.example:5000/team/tunejob@sha256:0123456789abcdef", "team/tunejob"),
        ("MODEL_URL", "https://registry.example:8080/organisation/model@v1", "organisation"),
        ("EMAIL", "somebody@example.com", "somebody"),
        ("PWD", "/nowhere/at/all", "/nowhere/at/all"),
        ("DATABASE_URL", "postgres://postgres@host/db", "postgres"),
    ],
)
def test_what_only_looks_like_a_credential_is_left(name: str, value: str, kept: str) -> None:
    assert Redactor({name: value})(f"<{value}> {kept}") == f"<{value}> {kept}"


FILES = {
    ".netrc": f"machine hub.example\n  login me\n  password {PASSWORD}\n",
    ".aws/credentials": f"[default]\naws_access_key_id = AKIAX\naws_secret_access_key={PASSWORD}\n",
    ".aws/config": f"[profile x]\nregion = eu-west-1\naws_session_token = {PASSWORD}\n",
    "tokens/aws": f"{PASSWORD}\n",
    "key.json": json.dumps({"type": "service_account", "private_key_id": PASSWORD, "client_email": "a@b"}),
    "pass": PASSWORD,
}
NAMED_FILES = {
    "AWS_WEB_IDENTITY_TOKEN_FILE": "tokens/aws",
    "GOOGLE_APPLICATION_CREDENTIALS": "key.json",
    "DB_PASSWORD_FILE": "pass",
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_in_files_of_credentials_is_secret(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(FILES[name])
    environment = {variable: str(path) for variable, file in NAMED_FILES.items() if file == name}
    masked = Redactor(environment or {"HOME": str(tmp_path)})(f"the answer to {path} quotes {PASSWORD}")
    assert masked == f"the answer to {path} quotes [secret]"


def test_a_file_that_is_none_or_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = {
        "A_TOKEN_FILE": str(tmp_path / "pipe"),
        "B_TOKEN_FILE": "/dev/zero",
        "C_TOKEN": str(tmp_path),
        "HOME": "/nowhere",
        "D_TOKEN": "\0",
    }
    assert Redactor(names)("whatever it is") == "whatever it is"


def test_what_is_learned_later_is_secret_for_every_redactor() -> None:
    before = Redactor({})
    assert before("canary0009canary0009") == "canary0009canary0009"
    learn("canary0009canary0009", None, "")
    assert before("<canary0009canary0009>") == Redactor({})("<canary0009canary0009>") == "<[secret]>"


def test_the_scheme_of_a_refused_proxy_may_be_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"me:{PASSWORD}://x@proxy:3128")
    with pytest.raises(InputError) as refused:
        require_proxies("https")
    assert PASSWORD.lower() not in str(refused.value).lower()
