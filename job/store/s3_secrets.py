"""Credentials that the AWS tools find elsewhere than in the environment: in a file, from a process, from a service of
the cloud. What is found there is taken out of every text from its first use on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from job.host.known_secrets import file_secrets, learn

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3 import S3Client


def keep_secret(client: S3Client, session: Session) -> None:
    """Learns what each request is signed with before it is; credentials that expire are learned anew.

    With them a token that they were bought with: its file is written anew, too.
    """
    known: set[str | None] = set()

    def before_sign(**_: Any) -> None:
        credentials = session.get_credentials()
        if credentials is None or credentials.method == "env":
            return
        found = credentials.get_frozen_credentials()
        if found.secret_key not in known:
            known.add(found.secret_key)
            learn(found.access_key, found.secret_key, found.token, *file_secrets(os.environ))

    client.meta.events.register_first("before-sign.s3", before_sign)
