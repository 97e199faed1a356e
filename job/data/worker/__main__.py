"""A worker process: rows in, token ids and labels out. All Jinja of a job runs here and nowhere else.

    python -m job.data.worker TOKENIZER_JSON PARENT_PID

It holds no secret (the job gives it an empty environment), writes no file, gets 1 GiB of memory beyond its tokenizer,
and imports neither torch nor transformers. The job bounds its time and kills it, and the kernel ends it with the job.
Messages: `job/data/worker/wire.py`.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from job.data.worker import wire
from job.data.worker.batch import answer
from job.host.fork_server import die_with
from job.host.records import build

EXTRA_BYTES = 1 << 30


def bound_resources() -> None:
    """Memory for one batch beyond what the tokenizer took; no files, no core dumps."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    die_with(int(sys.argv[2]))
    from tokenizers import Tokenizer

    source, output = sys.stdin.buffer, sys.stdout.buffer

    def send(header: wire.Reply, body: bytes = b"") -> None:
        output.write(wire.pack(wire.dump(header), body))
        output.flush()

    tokenizer = Tokenizer.from_file(sys.argv[1])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bound_resources()
    send(wire.Reply())  # ready
    while (message := wire.unpack(source.read)) is not None:
        request = build(wire.Request, message[0])
        send(*answer(request, tokenizer, lambda pointer: send(wire.Reply(stage=pointer))))


if __name__ == "__main__":
    main()
