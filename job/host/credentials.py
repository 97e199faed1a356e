"""What looks like a credential, so that none comes in through a spec or goes out in a message; and those of the
environment, made fit to be sent.

Forms are the issuers' documented prefixes; an AWS secret key has none and is known by its 40 mixed characters. A git
commit (40 hex digits) is not a credential. Every pattern runs in linear time: a spec may hold a mebibyte of anything.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise

from job.errors import Fault, InputError

MASK = "[secret]"
FORMS = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS access key
    r"|\b(?:IQoJb3JpZ2lu|FwoGZXIvYXdz)[A-Za-z0-9/+=]{50,}"  # AWS session token
    r"|\b(?:hf|api_org)_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\bsk-(?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{20,}"  # model vendors
    r"|\bAIza[A-Za-z0-9_-]{35}"  # Google
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\b(?:npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{30,})"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*"
    r"|(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"  # JSON Web Token
    r"|\b[a-z][a-z0-9+.-]{0,20}://[^/\s@:]{1,256}:[^/\s@]{1,256}@"  # user:password@ in an address
    r"|[?&](?:X-Amz-Signature|X-Amz-Security-Token|sig)=[^&\s]*"  # a signed address
)
FORTY = re.compile(r"(?<![A-Za-z0-9/+=])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])")
NAMES = re.compile(
    r"(?:password|passwd|passphrase)$"  # also PGPASSWORD
    r"|(?:^|(?<!bos)(?<!eos)(?<!pad)(?<!unk)[_-])(?:token|secret|credentials?|creds|webhook(?:[_-]?url)?|notify[_-]url"
    r"|(?:api|access|account|encryption|judge|notify|private|secret|shared|signing|webhook)[_-]?key(?:[_-]?id)?)$"
    r"|[_-](?:pat|pwd|pass|auth)$",
    re.IGNORECASE,
)
SENT = ("AWS_", "HF_", "HUGGING_FACE_", "WANDB_", "MLFLOW_", "TRACKIO_", "TUNEJOB_")  # variables that go to servers
BLANK = r"[\s\ufeff\u200b-\u200d\u2060]+"  # white space, and what looks like none: byte order marks, joiners
ENDS = re.compile(rf"^{BLANK}|{BLANK}$")
# Random base64 changes between upper case, lower case and digits some 25 times in 40 characters; paths and words
# seldom do.
RANDOM_CHANGES = 15


def mask(text: str) -> str:
    """`text` with everything that looks like a credential replaced."""
    return FORTY.sub(lambda found: MASK if _is_random(found[0]) else found[0], FORMS.sub(MASK, text))


def looks_secret(text: str) -> bool:
    return bool(FORMS.search(text)) or any(_is_random(found[0]) for found in FORTY.finditer(text))


def names_secret(key: str) -> bool:
    """Whether a key's name says that its value is a credential, as in `hf_token` or `secretKey`."""
    return bool(NAMES.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)))


def settle_credentials() -> None:
    """Takes white space off the ends of the variables that servers are sent, as files and editors leave it there; a
    variable that holds nothing else is unset.

    Raises `InputError` naming every credential that cannot be sent as it is: with white space or a control character
    inside, or a letter that no header can hold.
    """
    faults = []
    for name, value in list(os.environ.items()):
        if not name.startswith(SENT):
            continue
        plain = ENDS.sub("", value)
        if not plain and (value or name.startswith("HF_")):
            del os.environ[name]
        elif plain != value:
            os.environ[name] = plain
        if names_secret(name) and not (plain.isascii() and plain.isprintable() and " " not in plain):
            faults.append(
                Fault(
                    "this credential has characters in it that cannot be sent",
                    where=name,
                    found="white space, a line break or a letter beyond ASCII",
                    expected="printable ASCII without white space",
                    hint="Copy it again; a Secret is best made with --from-literal, or with printf rather than echo",
                )
            )
    if faults:
        raise InputError(*faults)


def _is_random(text: str) -> bool:
    kinds = ["u" if c.isupper() else "l" if c.islower() else "d" if c.isdigit() else "/" for c in text]
    return {"u", "l", "d"} <= set(kinds) and sum(a != b for a, b in pairwise(kinds)) >= RANDOM_CHANGES
