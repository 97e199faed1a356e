"""Whose an output is: nobody's until something is worth keeping, and one run's from then on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from job.errors import InputError, TransientError
from job.host.credentials import MASK
from job.host.log import Log
from job.host.stats import Stats
from job.ledger.claim import OTHER_HINT, Claim, examine, spec_bytes
from job.ledger.evidence import forget_failure
from job.ledger.lease import KEY, Lease
from job.ledger.manifest import MANIFEST, SPEC
from job.ledger.receipts import PINNED, Receipts
from job.report.summary import keep_evidence
from job.spec import JobSpec
from job.spec.strict import StrictValidator, load_schema
from job.store import Store, Stored, open_store
from tests.unit.test_manifest import CONTENTS, a_spec, finished

LOG = Log(StringIO())
FAILED = {
    "status": "failed",
    "run_id": "0123456789abcdef",
    "report": ["report/samples.md", "report/tensorboard/events.1"],
}
REPORT = {"stats.json": json.dumps(FAILED).encode(), "report/samples.md": b"x", "report/tensorboard/events.1": b"y"}


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(
        str(tmp_path / "out") if request.param == "directory" else f"s3://{request.getfixturevalue('bucket')}/run"
    )


@pytest.fixture
def lease(store: Store) -> Iterator[Lease]:
    with Lease(store, LOG) as held:
        yield held


def claim_of(store: Store, spec: JobSpec, lease: Lease) -> Claim:
    return Claim(store, spec, lease, Receipts(store, spec.run_id, LOG), LOG, None)


def put(store: Store, contents: dict[str, bytes]) -> None:
    for key, data in contents.items():
        store.write(key, data)


def contents(store: Store) -> dict[str, bytes]:
    return {item.key: store.read(item.key) for item in store.list() if item.key != KEY}


def test_nothing_is_claimed_until_something_is_to_be_stored(store: Store, lease: Lease) -> None:
    spec = a_spec()
    assert examine(store, spec) is None
    claim = claim_of(store, spec, lease)
    claim.pin({"/model/source": "a" * 40})
    assert contents(store) == {}
    claim.hold()
    pinned = f"checkpoints/{spec.run_id}/done/{PINNED}.json"
    assert contents(store).keys() == {SPEC, pinned}
    assert json.loads(store.read(SPEC)) == spec.resolved
    assert store.read(SPEC).startswith(b'{\n  "')
    before = contents(store)
    claim.hold()
    assert contents(store) == before


def test_the_same_run_may_come_back_before_it_finished(store: Store, lease: Lease) -> None:
    put(store, {SPEC: spec_bytes(a_spec()), "adapter/part": b"x", **REPORT})
    before = contents(store)
    again = a_spec(uri="elsewhere")
    assert examine(store, again) is None  # the output is not a part of a run's identity
    claim_of(store, again, lease).hold()
    assert contents(store) == before


def test_the_report_of_a_failure_claims_nothing_and_is_replaced(store: Store, lease: Lease) -> None:
    put(store, REPORT | {"checkpoints/0123456789abcdef/rights": b"left where nothing may be deleted"})
    assert examine(store, a_spec()) is None
    claim_of(store, a_spec(), lease).hold()
    assert contents(store).keys() == {SPEC, "checkpoints/0123456789abcdef/rights"}


LISTED = [
    ["report/../../kept"], ["/etc/passwd"], ["adapter/kept"],
    ["report"], [7, None], {"report/samples.md": 1}, "report/samples.md",
]  # fmt: skip


@pytest.mark.parametrize("listed", LISTED, ids=str)
def test_a_report_that_lists_other_things_deletes_none_of_them(listed: object, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    (tmp_path / "kept").write_bytes(b"x")
    put(
        store,
        {
            "adapter/kept": b"x",
            "report/samples.md": b"x",
            "stats.json": json.dumps(FAILED | {"report": listed}).encode(),
        },
    )
    with pytest.raises(InputError, match=r"adapter/kept without spec\.json"):
        examine(store, a_spec())
    with Lease(store, LOG) as lease:
        claim_of(store, a_spec(), lease).hold()
    assert {"adapter/kept", "report/samples.md"} <= contents(store).keys()
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "found",
    [
        {"a": b"x"},
        {"checkpoints/0123/step-1/x": b"x"},
        {SPEC: b"{"},
        {SPEC: b"[]"},
        {SPEC: b"\xff"},
        {SPEC: b"{}"},
        {SPEC: spec_bytes(a_spec("another"))},
        {SPEC: spec_bytes(a_spec(seed=1)), "adapter/x": b"x"},
        REPORT | {"report/notes.md": b"mine"},
        {"stats.json": b'{"status": "failed"}'},
        {"stats.json": json.dumps(FAILED | {"status": "succeeded"}).encode()},
    ],
    ids=str,
)
def test_what_is_not_ours_is_refused_and_left_alone(store: Store, found: dict[str, bytes]) -> None:
    put(store, found)
    with pytest.raises(InputError, match="this prefix belongs to another run") as failure:
        examine(store, a_spec())
    assert failure.value.faults[0].where == "/output/uri"
    assert contents(store) == found


def test_a_refusal_lists_what_differs(tmp_path: Path) -> None:
    """With both values, few of many, and no secret of either."""
    store = open_store(str(tmp_path / "out"))
    secret = "hf_" + "A" * 34
    other = a_spec("other", epochs=2.0, seed=1).resolved | {
        "tracking": [str(number) for number in range(20)],
        "extra": 1,
    }
    other["model"]["source"] = secret
    put(store, {SPEC: json.dumps(other).encode()})
    with pytest.raises(InputError) as failure:
        examine(store, a_spec(max_steps=4))
    first, *faults = failure.value.faults
    assert first.hint == OTHER_HINT
    assert len(OTHER_HINT) <= 96, "the termination message holds it"
    assert "/name, " in first.found
    said = {fault.where: (fault.found, fault.expected) for fault in faults}
    assert said["/name"] == ('"x"', '"other"')
    assert said["/training/epochs"] == ("nothing", "2.0")
    assert said["/training/max_steps"] == ("4", "nothing")
    assert said["/training/seed"] == ("3407", "1")
    assert said["/model/source"] == ('"./model"', f'"{MASK}"')
    assert said["/tracking/0"] == ('"tensorboard"', '"0"')
    assert len(faults) == 9
    assert faults[-1].message == "and 18 more keys differ from those of the stored run"
    assert secret[:4] not in str(failure.value)


def test_a_finished_run_of_another_spec_is_refused(store: Store, tmp_path: Path) -> None:
    other = finished(store, a_spec("other"), tmp_path, {})
    with pytest.raises(InputError, match=f"belongs to another run.*{other.run_id}") as failure:
        examine(store, a_spec())
    assert [fault.where for fault in failure.value.faults] == ["/output/uri", "/name"]


@pytest.mark.parametrize("damage", ["missing", "shorter", "manifest"])
def test_a_damaged_finished_run_is_not_taken_for_done(store: Store, tmp_path: Path, damage: str) -> None:
    finished(store, a_spec(), tmp_path, CONTENTS)
    if damage == "missing":
        store.delete("stats.json")
    elif damage == "shorter":
        store.write("stats.json", b"{}")
    else:
        store.write(MANIFEST, store.read(MANIFEST)[:-10])
    with pytest.raises(InputError) as failure:
        examine(store, a_spec())
    assert failure.value.exit_code == 11
    assert ("tunejob verify" in str(failure.value)) == (damage != "manifest")
    assert "--replace" in failure.value.faults[0].hint


def test_who_was_overtaken_claims_and_reports_nothing(store: Store, lease: Lease) -> None:
    """Two specs, one output: the lease went to another one, which has stored nothing yet."""
    claim = claim_of(store, a_spec(), lease)
    assert claim.takes_reports()
    store.write(KEY, b"another 1")
    for use in (claim.hold, claim.takes_reports):
        with pytest.raises(TransientError, match="taken over"):
            use()
    assert store.list() == [Stored(KEY, 9)]


def test_a_spec_that_was_written_over_is_written_again_for_the_manifest(store: Store, lease: Lease) -> None:
    claim = claim_of(store, a_spec(), lease)
    claim.hold()
    store.write(SPEC, spec_bytes(a_spec("overtaken")))
    listed = claim.spec_file()
    assert store.read(SPEC) == spec_bytes(a_spec())
    assert (listed.bytes, listed.sha256) == (len(store.read(SPEC)), store.sha256(SPEC))


def test_nothing_is_reported_over_a_result(store: Store, lease: Lease, tmp_path: Path) -> None:
    finished(store, a_spec(), tmp_path, {})
    assert not claim_of(store, a_spec(), lease).takes_reports()


def test_a_later_failure_takes_the_place_of_an_earlier_one(store: Store, tmp_path: Path) -> None:
    """But not of a report that an artefact's receipt lists."""
    kept = "report/answers.json"
    for name, failure in (("first", {"message": "one"}), ("second", {"message": "two"})):
        stats = Stats(a_spec().run_id, "x", tmp_path / name, failure=failure)
        for file in ("samples.md", "answers.json", f"tensorboard/events.{name}"):
            path = stats.workdir / "report" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        keep_evidence(store, stats, LOG, [kept])
    assert contents(store).keys() == {"stats.json", kept, "report/samples.md", "report/tensorboard/events.second"}
    document = json.loads(store.read("stats.json"))
    StrictValidator(load_schema("stats")).validate(document)
    assert document["report"] == ["report/samples.md", "report/tensorboard/events.second"]
    forget_failure(store, LOG, {"report/samples.md", "stats.json"})
    assert contents(store).keys() == {"stats.json", kept, "report/samples.md"}
