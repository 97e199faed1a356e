"""A credential in a spec: refused wherever it is, and never printed."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from job.errors import SpecError
from job.host.credentials import looks_secret, mask, names_secret
from job.preview.quoted import parse_unquoted
from tests.specs import changed, faults_of, faults_with, parse

# None of these is or was anybody's: made up in the issuers' forms, and split, so that scanners see no leak here.
SECRETS = {
    "AWS access key": "AKIA" + "QZ7XN4T2KLM5VW3R",
    "AWS temporary key": "ASIA" + "QZ7XN4T2KLM5VW3R",
    "AWS secret key": "pX7sK2mQ9vR4tB8n" + "L3cW6jH1fD5gZ0yA/eU+iO7k",
    "AWS session token": "IQoJb3JpZ2lu" + "X2VjEJr7" * 12,
    "Hugging Face": "hf_" + "kQwZrTbNmLpXvCsDfGhJyUiOaSeWqRtYuI",
    "GitHub": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "GitHub fine-grained": "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789",
    "GitLab": "glpat-" + "xYz12-AbCd_34EfGh56",
    "model vendor": "sk-" + "proj-a1B2c3D4e5F6g7H8i9J0k1L2",
    "Slack": "xoxb-" + "123456789012-abcdefABCDEF",
    "Google": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "npm": "npm_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "JSON Web Token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl",
    "password in an address": "https://user:" + "pa55word@example.org/x",
    "signed address": "https://example.org/x?X-Amz-" + "Signature=0123abcd",
}
HARMLESS = [
    "hf://org/name@0123456789abcdef0123456789abcdef01234567",
    "0123456789ABCDEF0123456789abcdef01234567",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "s3://my-bucket/Projects/Team7/Models/Llama3/Run12/train.jsonl",
    "/data/Projects/Team7/Models/Llama/run1234",
    "HuggingFaceTB/SmolLM2135MInstructDataset",
    "{% for key, value in options.items() %}{{ key }}. {{ value }}{% endfor %}",
    "user@example.org: see https://example.org/a:b/c@d",
    "sk-learn-is-a-common-misspelling-of-scikit",
    "The answer is AKIA, in capitals.",
]


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize(
    "pointer", ["/name", "/model/source", "/evaluation/prompts", "/output/uri", "/unknown", "/training/seed", "/data"]
)
def test_a_secret_as_a_value_is_refused_and_masked(secret: str, pointer: str) -> None:
    value = [f"Say {secret} twice"] if pointer.endswith("prompts") else secret
    faults = faults_with({pointer: value})
    found = [fault for fault in faults if "looks like a secret" in fault.message]
    assert [fault.where for fault in found] == [f"{pointer}/0" if pointer.endswith("prompts") else pointer]
    assert secret not in "\n".join(map(str, faults))


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_secret_as_a_key_is_refused_and_masked_wherever_the_key_is_named(secret: str) -> None:
    key = json.dumps(secret)
    base = json.dumps(changed({}))[:-1]
    for raw in (
        f"{base}, {key}: 1}}",
        f"{base}, {key}: 1, {key}: 2}}",
        f'{base}, {key}: {{"x": NaN}}}}',
        f'{base}, "x": {{{key}: 1e999}}}}',
    ):
        text = "\n".join(map(str, faults_of(raw.encode())))
        assert "looks like a secret" in text
        assert secret not in text
        assert secret.replace("~", "~0").replace("/", "~1") not in text


@pytest.mark.parametrize("key", ["bos_token", "eos_token", "pad_token", "unk_token"])
def test_a_token_of_a_vocabulary_is_no_credential_but_its_value_may_be_one(key: str) -> None:
    assert not names_secret(key)
    assert names_secret(f"{key}_token")
    assert [fault.message for fault in faults_with({f"/model/{key}": "<|im_end|>"})] == ["unknown key"]
    assert SECRETS["Hugging Face"] not in str(faults_with({f"/model/{key}": SECRETS["Hugging Face"]}))


@pytest.mark.parametrize(
    "key",
    [
        "hf_token",
        "HF_TOKEN",
        "aws_secret_access_key",
        "password",
        "apiKey",
        "secretKey",
        "wandb-api-key",
        "credentials",
    ],
)
def test_a_key_that_says_it_holds_a_secret_is_refused_and_its_value_not_shown(key: str) -> None:
    (fault,) = faults_with({f"/training/{key}": "hunter2hunter2"})
    assert fault.where == f"/training/{key}"
    assert "looks like a secret" in fault.message
    assert "hunter2" not in str(fault)


def test_all_of_a_secret_is_masked_not_only_what_gives_it_away() -> None:
    assert mask(SECRETS["private key"] + "\nMIIEow\n-----END") == "[secret]"
    assert mask(SECRETS["JSON Web Token"] + " x") == "[secret] x"
    assert mask("https://example.org/x?X-Amz-" + "Signature=0123abcd&y=1") == "https://example.org/x[secret]&y=1"
    assert mask(SECRETS["password in an address"]) == "[secret]example.org/x"
    for name in (
        "AWS access key",
        "AWS secret key",
        "AWS session token",
        "Hugging Face",
        "GitHub",
        "GitLab",
        "Slack",
        "Google",
        "npm",
    ):
        assert mask(f"a {SECRETS[name]} b") == "a [secret] b"


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_not_a_secret(text: str) -> None:
    assert not looks_secret(text)
    assert mask(text) == text


def test_keys_of_the_spec_name_no_secret() -> None:
    assert not any(
        names_secret(key) for key in ("max_new_tokens", "tokens", "tokenizer", "name", "uri", "keep", "monkey")
    )


def test_a_commit_is_a_good_revision() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert parse({"/model/source": f"hf://org/name@{commit}"}).model.source.endswith(commit)


def test_values_inside_unknown_objects_are_not_shown() -> None:
    faults = faults_with({"/env": [{"name": "WANDB_API_KEY", "value": "0123456789abcdef0123456789abcdef01234567"}]})
    assert "0123456789abcdef" not in "\n".join(map(str, faults))


QUOTED = "a-credential/of=nobody's"


@pytest.mark.parametrize(
    ("pointer", "value", "where"),
    [
        ("/evaluation/prompts", ["Hello", f"Say {QUOTED} twice"], "/evaluation/prompts/1"),
        ("/evaluation/prompts", [quote(QUOTED, safe="")], "/evaluation/prompts/0"),
        ("/data/train/0/columns", {"messages": QUOTED}, "/data/train/0/columns/messages"),
        ("/data/chat_template", "{{ '" + QUOTED.replace("'", "\\x27") + "' }}", "/data/chat_template"),
        ("/output/uri", f"s3://bucket/{QUOTED}", "/output/uri"),
    ],
)
def test_a_credential_of_the_environment_is_refused_wherever_it_is_quoted(
    pointer: str, value: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spec is stored with the result as it is: it was there to be read."""
    raw = json.dumps(changed({pointer: value})).encode()
    assert parse_unquoted(raw)
    monkeypatch.setenv("TUNEJOB_JUDGE_KEY", f" {QUOTED}\n")
    with pytest.raises(SpecError, match="this is a credential of the environment") as refused:
        parse_unquoted(raw)
    assert [fault.where for fault in refused.value.faults] == [where]
    assert QUOTED not in str(refused.value)


def test_a_short_credential_may_be_a_word_of_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "try-out")
    assert parse_unquoted(json.dumps(changed({"/output/uri": "s3://try-out/runs"})).encode())
