"""Attack: keys of a store, names of a listing or index that would point out of their folder: refused or contained."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.errors import InputError, PolicyError
from job.source import fetch_model_config
from job.store import DirectoryStore, S3Store, safe_key
from tests.servers import Hub, listing_server

ESCAPES = [
    "..", "../x", "../../etc/cron.d/x", "a/..", "a/../b", "a/../../b", "a/b/../../../c", "./..", "a/./../..", "..//x",
    ".", "./x", "a/.", "a/./b", "/", "//", "/etc/passwd", "//etc/passwd", "///x", "a//b", "a/", "a//", "", "a///../b",
]  # fmt: skip
CHARACTERS = [
    "a\0", "\0", "a\0/../b", "a\nb", "\n", "a\rb", "a\tb", "\x1b[2J", "a\x7f", "a\x80", "a\x9f", "a\x85b",
    "\ud800", "a\udfff", "x/\udcff", "a\\b", "..\\x", "\\", "C:\\x", "\\\\host\\share", "a\\..\\b", "dir\\", "a/b\\c",
]  # fmt: skip
LONG = ["x" * 256, "a/" + "x" * 256, "ü" * 128, "x" * 256 + "/a", "x" * 5000, "名" * 86, "a/" * 3 + "y" * 300]
OURS = [".tunejob-", ".tunejob-x", "a/.tunejob-1", ".tunejob-a/b", "a/.tunejob-b/c"]
REFUSED = ESCAPES + CHARACTERS + LONG + OURS
# Odd, and harmless: they must stay below the root under exactly their own name.
CONTAINED = [
    "...", "..a", "a..", "~", "~root", "$HOME", "%2e%2e", "%2e%2e/x", "..%2fx", "-rf", "a b", " ", "a:b", "C:", "*",
    "?", "[a]", "{a}", "|x", "; rm", "`x`", "'", '"', "é", "e\u0301",
    "\u202eabc", "．．", "．．/x", "∕etc", "x" * 255, "ü" * 127,
    "con", "Train", "train",
]  # fmt: skip


def test_there_are_enough_keys() -> None:
    assert len(set(REFUSED)) >= 50
    assert len(set(REFUSED) | set(CONTAINED)) >= 90


@pytest.mark.parametrize("key", REFUSED, ids=ascii)
def test_refused_by_every_method_and_nothing_touched(tmp_path: Path, key: str) -> None:
    root = tmp_path / "a" / "b" / "root"
    store = DirectoryStore(root)
    (tmp_path / "source").write_bytes(b"x")
    for use in (
        lambda: safe_key(key),
        lambda: store.write(key, b"x"),
        lambda: store.upload(tmp_path / "source", key),
        lambda: store.read(key),
        lambda: store.download(key, tmp_path / "down"),
        lambda: store.sha256(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(PolicyError) as refusal:
            use()
        assert refusal.value.exit_code == 12
        assert str(refusal.value).isprintable()
    assert [p.name for p in tmp_path.rglob("*")] == ["source"]


@pytest.mark.parametrize("key", CONTAINED, ids=ascii)
def test_contained_under_its_own_name(tmp_path: Path, key: str) -> None:
    root = tmp_path / "root"
    store = DirectoryStore(root)
    store.write(key, key.encode())
    assert [s.key for s in store.list()] == [key]
    assert store.read(key) == key.encode()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [root / key]


def test_case_twins_stay_apart(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.write("Model", b"1")
    store.write("model", b"2")
    assert (store.read("Model"), store.read("model")) == (b"1", b"2")


def test_on_s3_a_refused_key_never_reaches_the_server(bucket: str, tmp_path: Path) -> None:
    store = S3Store(f"s3://{bucket}/root")
    requests: list[object] = []
    store._client.meta.events.register("before-send.s3", lambda request, **_: requests.append(request))
    for key in REFUSED:
        for use in (
            lambda k=key: store.write(k, b"x"),
            lambda k=key: store.read(k),
            lambda k=key: store.download(k, tmp_path / "d"),
        ):
            with pytest.raises(PolicyError):
                use()
    assert requests == []


@pytest.mark.parametrize(
    "name", ["../../../escape.json", "a//b.json", "/escape.json", "x/../../escape.json", "c\\escape.json", "nl\n.json"]
)
def test_a_listing_with_an_escaping_name_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.repo("evil/model").commit({"config.json": b'{"model_type": "llama"}', "model.safetensors": b"", name: b"{}"})
    with pytest.raises(PolicyError, match="/model/source"):
        fetch_model_config("hf://evil/model", tmp_path / "a" / "b" / "work")
    assert list(tmp_path.rglob("*escape*")) == []


@pytest.mark.parametrize(
    "name", ["../../../escape.json", "a//b.json", "/escape.json", "..\\escape.json", "d/../../../escape.json"]
)
def test_an_s3_listing_with_a_climbing_key_is_refused(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    objects = {"m/config.json": b'{"model_type": "llama"}', "m/model.safetensors": b"", f"m/{name}": b"{}"}
    clean_environment.setenv("AWS_ACCESS_KEY_ID", "any")
    clean_environment.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with listing_server(objects) as address:
        clean_environment.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(PolicyError, match="/model/source"):
            fetch_model_config("s3://bucket/m", tmp_path / "a" / "b" / "work")
    assert list(tmp_path.rglob("*escape*")) == []


def test_an_s3_source_with_dots_in_its_address_is_refused(bucket: str, tmp_path: Path) -> None:
    with pytest.raises((PolicyError, InputError)):
        fetch_model_config(f"s3://{bucket}/a/../b", tmp_path / "work")
