"""What a run does at its end, tried on the model's own config and tokenizer before the weights are paid for.

Seconds of one core. What can still fail once a model is trained is in job/export/README.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from job.context import Run
from job.data.build import Prepared
from job.data.tokenizer import embedding_rows
from job.errors import Fault, InputError
from job.export.generation import unwritable_settings, write_document
from job.export.merge.documents import token_ids
from job.export.tokenizer import expected_tokenizer, save_tokenizer, tokenizer_faults
from job.gguf.expected import Expected
from job.gguf.worker import Rehearse, try_beforehand
from job.ledger.receipts import TRAINED
from job.plan.require import require_embeddings
from job.source import FetchedModel
from job.source.model_files import CONFIG, read_object


def rehearse(run: Run, base: FetchedModel, merge_base: FetchedModel, prepared: Prepared) -> None:
    """Raises `InputError` for a tokenizer that is other once it is written and read, a token without a row in the
    embedding, settings that nobody can read, and a vocabulary that llama.cpp does not know or reads otherwise. Looks
    at nothing where an earlier try has trained.
    """
    if TRAINED in run.receipts:
        return
    folder = run.workdir / "rehearsal"
    folder.mkdir()
    expected = expected_tokenizer(prepared)
    _try_tokenizer(base.path, folder, prepared, expected)
    rows = embedding_rows(base.path)
    if rows is not None:
        require_embeddings(rows, prepared)
    if refused := unwritable_settings(base.path, folder):
        run.log("note", text=f"published as the base has it, though transformers would not write it: {refused}")
    if run.spec.export.gguf:
        ids = token_ids(prepared.tokenizer, prepared.report.stop_token_ids)
        write_document(folder / CONFIG, read_object(merge_base.path / CONFIG) | ids)
        asked = Rehearse(folder, run.children / "vocabulary.gguf", expected)
        found = try_beforehand(asked, run.children, "the vocabulary as GGUF")
        run.log("rehearsal", gguf_vocabulary=found.skipped or "as trained")
    shutil.rmtree(folder)


def _try_tokenizer(base: Path, folder: Path, prepared: Prepared, expected: Expected) -> None:
    save_tokenizer(prepared.tokenizer, base, folder)
    faults = [
        Fault(
            f"written and read again, it is another: {fault.message}",
            where="/model/source",
            found=fault.found,
            expected=fault.expected,
            hint="Save the model's tokenizer anew with this version of transformers, and tune that",
        )
        for fault in tokenizer_faults(folder, expected)
    ]
    if faults:
        raise InputError(*faults)
