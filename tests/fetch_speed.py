"""How fast a model comes from a store, beside other programs: `python -m tests.fetch_speed [MIB]`.

The store is SeaweedFS on loopback, over HTTP and HTTPS; the model is four files of random bytes, stored in parts of 8
MiB as most programs store them. Ours is what the fetch of a run does. Theirs are hf_transfer (Rust; over HTTP only, for
it takes no authority of one's own; eight connections of 8 MiB, a file after the other) and boto3's own transfer,
neither of which compares anything with the store. Each runs in a process of its own, twice, in turns. Prints a JSON
line for each, then the ratios of the means. Memory is the process's peak; the page cache is not counted. The server
takes processor time of the same machine.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.servers import S3Server, s3_server

MIB = 2048
FILES = 4
PART_BYTES = 8 << 20
CONNECTIONS = 8
SIDES = {"http": ("ours", "hf_transfer", "boto3"), "https": ("ours", "boto3")}


def store(server: S3Server, folder: Path, file_bytes: int) -> str:
    """The model's address."""
    from boto3.s3.transfer import TransferConfig

    bucket, path = server.new_bucket(), folder / "file"
    for number in range(FILES):
        with path.open("wb") as file:
            for _ in range(file_bytes >> 20):
                file.write(os.urandom(1 << 20))
        config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
        server.client().upload_file(str(path), bucket, f"model/model-{number}.safetensors", Config=config)
    path.unlink()
    return f"s3://{bucket}/model"


def ours(address: str, names: list[str], folder: Path) -> None:
    from job.source.place import S3Origin

    S3Origin(address).stage(names, folder)


def boto3(address: str, names: list[str], folder: Path) -> None:
    import boto3
    from boto3.s3.transfer import TransferConfig

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    client = boto3.client("s3", verify=os.environ["AWS_CA_BUNDLE"])
    for name in names:
        config = TransferConfig(multipart_chunksize=PART_BYTES, max_concurrency=CONNECTIONS)
        client.download_file(bucket, f"{prefix}/{name}", str(folder / name), Config=config)


def hf_transfer(address: str, names: list[str], folder: Path) -> None:
    import boto3
    import hf_transfer

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for name in names:
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": f"{prefix}/{name}"})
        hf_transfer.download(url, str(folder / name), CONNECTIONS, PART_BYTES)


def measured(side: str, address: str, folder: Path) -> dict[str, Any]:
    """In this process; connections and imports of the first file count, for a run has them, too."""
    names = [f"model-{number}.safetensors" for number in range(FILES)]
    start = time.monotonic()
    {"ours": ours, "boto3": boto3, "hf_transfer": hf_transfer}[side](address, names, folder)
    seconds = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    moved = sum((folder / name).stat().st_size for name in names)
    return {"side": side, "mib_a_second": round(moved / seconds / (1 << 20)), "seconds": round(seconds, 2),
            "processor_seconds": round(used.ru_utime + used.ru_stime, 2), "peak_mib": used.ru_maxrss >> 10}  # fmt: skip


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(measured(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
        return
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else MIB
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, s3_server(Path(scratch)) as server:
        address = store(server, Path(scratch), (mib << 20) // FILES)
        for scheme, sides in SIDES.items():
            for side in (*sides, *reversed(sides)):
                environment = os.environ | server.environment(secure=scheme == "https")
                with tempfile.TemporaryDirectory() as folder:
                    command = [sys.executable, "-m", "tests.fetch_speed", side, address, folder]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                line = json.loads(done.stdout.splitlines()[-1])
                found.setdefault((scheme, side), []).append(line["seconds"])
                print(json.dumps({"scheme": scheme} | line), flush=True)
    means = {key: statistics.mean(seconds) for key, seconds in found.items()}
    ratios = {
        f"{scheme}, {side}": round(mean / means[scheme, "ours"], 2)
        for (scheme, side), mean in means.items()
        if side != "ours"
    }
    print(
        json.dumps(
            {
                "times_as_fast_as": ratios,
                "processors": len(os.sched_getaffinity(0)),
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
