"""Bytes that `json.loads` or a plain schema validator would let through, and messages that are safe to print."""

from __future__ import annotations

import json
import time

import pytest

from job.commands import read_spec
from job.errors import SpecError
from job.spec.strict import MAX_BYTES, MAX_DEPTH, faults_of_schema, load_schema, read_json
from job.spec.wording import pointer_of, printable, show
from tests.specs import faults_of

NOT_READ = [
    (b"", "the spec is empty"),
    (b" \n\t", "the spec is empty"),
    (b"[]", "the spec must be a JSON object (found [])"),
    (b"null", "the spec must be a JSON object (found null)"),
    (b'"text"', 'the spec must be a JSON object (found "text")'),
    (b"{}{}", "not JSON: Extra data (found line 1, column 3)"),
    (b'{"a": 1,}', "Look for an extra comma just before"),
    (b'{"a": 1,, "b": 2}', "(found line 1, column 9). There is a comma too many"),
    (b'{"a": 1 "b": 2}', "Look for a missing comma just before"),
    (b"{'a': 1}", "JSON strings take double quotes"),
    (b'{"a": 1} // note', "JSON has no comments"),
    (b'{"a": True}', "JSON writes true in lower case"),
    (b'{"a": [1, 2', "The text ends too early"),
    (b'{"a": "\x01"}', "not JSON: Invalid control character"),
    (b"\xef\xbb\xbf{}", "begins with a byte order mark. Save the file as UTF-8 without one"),
    (b"\xff\xfe{\x00}\x00", "not UTF-8 (found byte 0xff at offset 0)"),
    (b'{"a": "\xc3("}', "not UTF-8 (found byte 0xc3 at offset 7)"),
    (
        b"{" + b" " * MAX_BYTES + b"}",
        f"too large (found {MAX_BYTES + 2} bytes or more); expected at most 1048576 bytes",
    ),
    (b'{"a":' * 100_000, "nested too deeply; expected at most 32 levels"),
    (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested too deeply; expected at most 32 levels"),
    (b'{"a":' + b"9" * 5000 + b"}", "a number is too long"),
    (b'{"a": NaN}', "/a: not a finite number (found nan)"),
    (b'{"a": [1, -Infinity]}', "/a/1: not a finite number (found -inf)"),
    (b'{"a": 1e400}', "/a: not a finite number (found inf)"),
    (b'{"a": 1, "a": 1}', "/a: this key is given twice"),
    (b'{"a": {"b/c": 1, "b/c": 2, "b/c": 3}}', "/a/b~1c: this key is given twice"),
    (b'{"a": "\\ud800"}', "/a: a lone surrogate is not a character"),
    (b'{"\\udfff": 1}', r"/\udfff: a lone surrogate is not a character"),
]


@pytest.mark.parametrize(("raw", "words"), NOT_READ, ids=[words for _, words in NOT_READ])
def test_what_is_not_strict_json_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_json(raw)
    assert words in str(caught.value)
    assert len(caught.value.faults) == 1


def test_the_greatest_size_and_depth_are_read() -> None:
    padded = b'{"a": 1' + b" " * (MAX_BYTES - 8) + b"}"
    assert len(padded) == MAX_BYTES
    assert read_json(padded) == {"a": 1}
    deep = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert json.dumps(read_json(deep)).count("[") == MAX_DEPTH - 1


def test_a_surrogate_pair_is_a_character() -> None:
    assert read_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_every_value_at_fault_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        read_json(b'{"a": NaN, "b": [Infinity, "\\udc00"], "c": 1, "c": 2}')
    assert sorted(fault.where for fault in caught.value.faults) == ["/a", "/b/0", "/b/1", "/c"]


# Documents near a mebibyte, each made to be slow in one place: regular expressions, comparing, wording.
BOMBS = {
    "one long word": '{"name":"' + "x" * 1_000_000 + '"}',
    "starts of tokens": '{"name":"' + "eyJ-" * 250_000 + '"}',
    "starts of keys": '{"name":"' + "sk-" * 330_000 + '"}',
    "schemes": '{"name":"' + "a://" * 250_000 + '"}',
    "passwords": '{"name":"a://' + "a:" * 500_000 + '"}',
    "random words": '{"name":"' + ("aB3+" * 10 + " ") * 24_000 + '"}',
    "control characters": '{"name":"' + "\\u0001" * 170_000 + '"}',
    "surrogates": '{"name":"' + "\\ud800" * 170_000 + '"}',
    "unknown keys": "{" + ",".join(f'"key{i}":1' for i in range(70_000)) + "}",
    "one key often": "{" + ",".join('"key":1' for _ in range(120_000)) + "}",
    "a long key": '{"' + "training" * 120_000 + '":1}',
    "many faults": '{"data":{"train":[' + ",".join("{}" for _ in range(300_000)) + "]}}",
    "entries to compare": '{"lora":{"targets":['
    + ",".join(f'"a{i}"' if i % 2 else str(i) for i in range(100_000))
    + "]}}",
    "long split": '{"data":{"train":[{"source":"a","format":"text","split":"' + "a" * 1_000_000 + '"}]}}',
    "braces": '{"data":{"chat_template":"' + "{" * 1_000_000 + '"}}',
    "not a number": '{"a":[' + ",".join("NaN" for _ in range(200_000)) + "]}",
    "long numbers": '{"a":[' + ",".join("1" * 4299 for _ in range(230)) + "]}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_document_takes_long(name: str) -> None:
    raw = BOMBS[name].encode()
    assert len(raw) <= MAX_BYTES
    start = time.process_time()
    faults = faults_of(raw)
    assert time.process_time() - start < 3.0
    assert 1 <= len(faults) <= 210
    assert len("\n".join(map(str, faults))) < 50_000


# ------------------------------------------------------------------------------------------- for messages


def test_values_are_shown_short_and_printable() -> None:
    assert show("a" * 5000) == f'"{"a" * 120}… (5000 characters)"'
    assert show("a\n\x1b[2J\u202e\u2028é") == '"a\\n\\u001b[2J\\u202e\\u2028é"'
    assert show([1] * 3) == "a list of 3"
    assert show({"a": 1, "b": 2}) == "an object with a, b"
    assert (show([]), show({}), show(None), show(True), show(1.5)) == ("[]", "{}", "null", "true", "1.5")
    assert printable("\ud800") == "\\ud800"


def test_pointers_are_escaped_and_printable() -> None:
    assert pointer_of(["a/b~c", 3, "\x1b"]) == "/a~1b~0c/3/\\u001b"
    assert pointer_of(["k" * 500]) == f"/{'k' * 120}… (500 characters)"


def test_faults_are_printable_whatever_the_spec_holds() -> None:
    faults = faults_of(b'{"\\u001b]0;x\\u0007\\ud800": "\\u001b[31m", "name": "\\u009b2J\\u202e"}')
    text = "\n".join(map(str, faults))
    assert all(c.isprintable() or c == "\n" for c in text)
    text.encode("utf-8")


# ------------------------------------------------------------------------------------------ schema reading


def test_a_pattern_ends_at_the_end() -> None:
    schema = {"type": "string", "pattern": "^[a-z]+$", "examples": ["abc"]}
    assert faults_of_schema("abc", schema) == []
    assert [fault.message for fault in faults_of_schema("abc\n", schema)] == ["wrong form"]


def test_an_unknown_schema_is_not_found() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.schema\.json"):
        load_schema("nothing")


def test_no_more_of_a_spec_is_read_than_it_may_have() -> None:
    with pytest.raises(SpecError, match="the spec is too large"):
        read_json(read_spec("/dev/zero"))
