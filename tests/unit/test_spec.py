"""Bad specs with the exact places and words of their faults; good ones with what they resolve to."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import resource
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from job.arguments import parser
from job.commands import command_validate
from job.errors import SpecError
from job.host.log import Log
from job.render import render
from job.render.options import RenderArguments, options
from job.spec import job_schema, parse_spec
from job.spec.elsewhere import keys_of
from job.spec.foreign import INSTEAD, NAMES
from job.spec.strict import load_schema
from tests.gpu import dpo_bench, pairs
from tests.specs import LEFT_OUT, MINIMAL, changed, faults_with, parse

TRAIN = "/data/train/0"
HELD_OUT = {"/data/held_out": {"rows": 5}}
NONE_HELD_OUT = {"/data/held_out": False}
TEXT = {f"{TRAIN}/format": "text"}
KTO = {"/training/method": "kto", f"{TRAIN}/format": "kto"}
DPO = {"/training/method": "dpo", f"{TRAIN}/format": "preference"}
ASKED = {"/evaluation/exact_match_rows": 4, **HELD_OUT}
LETTERS = {"/evaluation/choices": ["A", "B"]}
MERGED = {"/export": {"merged": ["16bit"]}}

# What is put where in the smallest spec; the pointers of all faults; words of the first fault.
BAD: list[tuple[dict[str, Any], list[str], str]] = [
    # required and unknown keys
    ({"/name": LEFT_OUT}, ["/name"], "a required key is missing; expected Name of the run"),
    ({"/model": LEFT_OUT}, ["/model"], "a required key is missing; expected The base model"),
    ({"/output/uri": LEFT_OUT}, ["/output/uri"], "a required key is missing"),
    ({f"{TRAIN}/format": LEFT_OUT}, [f"{TRAIN}/format"], "expected Shape of a row: messages"),
    ({"/training/learing_rate": 1}, ["/training/learing_rate"], 'Did you mean "learning_rate"?'),
    ({"/Lora": {"r": 8}}, ["/Lora"], '(found an object with r); expected a key of the spec. Here it is /lora'),
    ({"/data/held_out/fracton": 0.1}, ["/data/held_out/fracton"], 'Did you mean "fraction"?'),
    ({"/a~b/c": 1}, ["/a~0b"], "unknown key"),
    # types
    ({"/version": 1.5}, ["/version"], "wrong type (found 1.5); expected a whole number"),
    ({"/version": 2.0}, ["/version"], "not the allowed value (found 2.0); expected 1"),
    ({"/version": True}, ["/version"], "wrong type (found true); expected a whole number"),
    ({"/version": 2}, ["/version"], "not the allowed value (found 2); expected 1"),
    ({"/training/max_steps": 0.0}, ["/training/max_steps"], "too small (found 0.0); expected at least 1"),
    ({"/training/max_steps": 1e300}, ["/training/max_steps"], "too large (found 1e+300)"),
    ({"/training/max_steps": True}, ["/training/max_steps"], "wrong type (found true); expected a whole number"),
    ({"/training/max_steps": "60"}, ["/training/max_steps"], "Remove the quotes"),
    ({"/training/learning_rate": False}, ["/training/learning_rate"], "wrong type (found false); expected a number"),
    ({"/model/max_seq_length": 8.5}, ["/model/max_seq_length"], "wrong type (found 8.5); expected a whole number"),
    ({"/data/packing": 1}, ["/data/packing"], "wrong type (found 1); expected true or false"),
    ({"/model": []}, ["/model"], 'wrong type (found []); expected an object such as {"source": "hf://'),
    ({"/model": "org/name"}, ["/model"], 'wrong type (found "org/name"); expected an object such as {"source": "hf://'),
    ({TRAIN: None}, [TRAIN], 'expected an object such as {"source": "s3://data/train.jsonl", "format": "messages"}'),
    ({"/data/train": {"source": "x"}}, ["/data/train"],
     'found an object with source); expected a list such as [{"source": "hf://datasets/'),
    ({"/training/learning_rate": "2e-4"}, ["/training/learning_rate"],
     "expected a number such as 0.0003. Remove the quotes"),
    # placeholders of addresses
    ({"/output/uri": "{date}/{name}"}, ["/output/uri"],
     'not a placeholder of an address (found "{date}"); expected {name} or {run_id}'),
    ({"/output/uri": "out/{{name}}"}, ["/output/uri"] * 2, 'found "{"'),
    ({"/output/uri": "out/{run_id"}, ["/output/uri"], 'found "{"'),
    ({"/output/uri": "s3://a b/{run_id}"}, ["/output/uri"], "The bucket's name comes after s3://"),
    ({"/output/checkpoints": {"uri": "s3://b/{NAME}"}}, ["/output/checkpoints/uri"], 'found "{NAME}"'),
    # limits and forms
    ({"/name": "A_b"}, ["/name"], 'wrong form (found "A_b"); expected the form of "finetome-llama31-8b"'),
    ({"/name": "small\n"}, ["/name"], r'wrong form (found "small\n")'),
    ({"/name": "a" * 64}, ["/name"], "wrong form"),
    ({"/model/max_seq_length": 15}, ["/model/max_seq_length"], "too small (found 15); expected at least 16"),
    ({"/training/learning_rate": 0}, ["/training/learning_rate"], "too small (found 0); expected more than 0"),
    ({"/training/learning_rate": 10**400}, ["/training/learning_rate"], "too large"),
    ({"/evaluation/gates": [{"metric": "perplexity", "at_most": 10**400}], **HELD_OUT}, ["/evaluation/gates/0/at_most"],
     "too large"),
    ({"/lora/dropout": 1}, ["/lora/dropout"], "too large (found 1); expected less than 1"),
    ({"/data/train": []}, ["/data/train"], "too few entries (found []); expected 1 or more entries"),
    ({"/model/source": ""}, ["/model/source"], 'too short (found ""); expected 1 or more characters'),
    ({"/evaluation/prompts": ["x"] * 1001}, ["/evaluation/prompts"],
     "too many entries (found a list of 1001); expected at most 1000"),
    ({"/tracking": ["wandb", "wandb"]}, ["/tracking"],
     'an entry is given twice (found "wandb"); expected each entry once'),
    ({"/data/held_out": {}}, ["/data/held_out"],
     "exactly one of the keys is needed (found {}); expected one of fraction, rows, sources"),
    ({"/data/held_out": {"rows": 1, "fraction": 0.1}}, ["/data/held_out"], "found an object with rows, fraction"),
    ({"/training/optimizer": "adamw8bit"}, ["/training/optimizer"], 'Did you mean "adamw_8bit"?'),
    ({"/training/gradient_checkpointing": 1}, ["/training/gradient_checkpointing"],
     'expected one of "auto", "unsloth", true, false'),
    ({"/data/chat_template": "chatlm"}, ["/data/chat_template"], 'or Jinja. Did you mean "chatml"?'),
    ({"/lora/targets": "all-liner"}, ["/lora/targets"],
     'expected "all-linear" or a list [ … ]. Did you mean "all-linear"?'),
    ({"/lora/targets": ["q_proj", "a b"]}, ["/lora/targets/1"],
     'wrong form (found "a b"); expected the form of "q_proj"'),
    ({"/lora/targets": ["q", "q"]}, ["/lora/targets"], 'an entry is given twice (found "q")'),
    # addresses
    ({"/model/source": "hf://name"}, ["/model/source"],
     'found "hf://name"); expected hf://org/name, s3://bucket/prefix or a path'),
    ({"/model/source": "https://huggingface.co/org/name"}, ["/model/source"], "Did you mean hf://org/name?"),
    ({"/model/source": "huggingface.co/org/name/tree/main"}, ["/model/source"], "Did you mean hf://org/name?"),
    ({"/model/source": "hf://gpt2"}, ["/model/source"],
     "path. Write its owner, too, as its page on the Hub has it: hf://OWNER/gpt2"),
    ({"/model/source": "hf://gpt2@v1"}, ["/model/source"], "hf://OWNER/gpt2@v1"),
    ({"/model/source": "https://huggingface.co/gpt2"}, ["/model/source"], "hf://OWNER/gpt2"),
    ({f"{TRAIN}/source": "hf://datasets/squad/"}, [f"{TRAIN}/source"], "hf://datasets/OWNER/squad"),
    ({f"{TRAIN}/source": "hf://squad"}, [f"{TRAIN}/source"], "hf://datasets/OWNER/squad"),
    ({"/model/source": "hf://org/name/"}, ["/model/source"], "Did you mean hf://org/name?"),
    ({"/model/source": "hf://org//name"}, ["/model/source"], "Did you mean hf://org/name?"),
    ({"/model/source": "hf://org/name/onnx/fp16"}, ["/model/source"],
     "Did you mean hf://org/name? A repository has an owner and a name"),
    ({"/model/source": "hf://org/name/tree/v2"}, ["/model/source"], "Did you mean hf://org/name@v2?"),
    ({"/model/source": "hf.co/org/name"}, ["/model/source"], "Did you mean hf://org/name?"),
    ({"/model/source": "hf://models/org/name"}, ["/model/source"], "Did you mean hf://org/name?"),
    ({f"{TRAIN}/source": "hf://Datasets/org/name"}, [f"{TRAIN}/source"], "Did you mean hf://datasets/org/name?"),
    ({f"{TRAIN}/source": "hf://datasets/org/name/rows.jsonl"}, [f"{TRAIN}/source"],
     "Did you mean hf://datasets/org/name? A repository has an owner and a name"),
    ({f"{TRAIN}/source": "https://huggingface.co/org/name"}, [f"{TRAIN}/source"], "This is the address of a model"),
    ({"/model/source": "hf://datasets/org/name"}, ["/model/source"], "This is the address of a data set"),
    ({"/model/source": "hf://org/name@"}, ["/model/source"], "not an address the job can read"),
    ({"/model/source": "hf://org/name@a/../b"}, ["/model/source"], "not an address the job can read"),
    ({"/model/source": "HF://org/name"}, ["/model/source"], "Write the scheme in lower case"),
    ({"/model/source": "s3:/bucket/x"}, ["/model/source"], "Write s3:// with two slashes"),
    ({"/model/source": "s3://bucket/x@main"}, ["/model/source"], "only Hub sources have revisions"),
    ({"/model/source": "https://example.org/x"}, ["/model/source"], "not an address the job can read"),
    ({"/model/source": "models/x\n"}, ["/model/source"], r'no control characters (found "models/x\n")'),
    ({f"{TRAIN}/source": "hf://org/name"}, [f"{TRAIN}/source"], "or a path. Did you mean hf://datasets/org/name?"),
    ({f"{TRAIN}/source": "https://huggingface.co/datasets/org/name"}, [f"{TRAIN}/source"],
     "Did you mean hf://datasets/org/name?"),
    ({"/output/uri": "hf://org/name"}, ["/output/uri"], "a Hub address does not fit here"),
    ({"/output/uri": "s3:///x"}, ["/output/uri"], "The bucket's name comes after s3://"),
    ({"/output/uri": "s3://bucket/a/../b"}, ["/output/uri"], "no empty part, no . and no .."),
    # sources of rows
    ({f"{TRAIN}/split": "train[:10"}, [f"{TRAIN}/split"],
     'wrong form (found "train[:10"); expected the form of "train[:10000]"'),
    ({f"{TRAIN}/split": "train[:10]\n"}, [f"{TRAIN}/split"], "wrong form"),
    ({f"{TRAIN}/split": "train[5:2]"}, [f"{TRAIN}/split"], 'this slice holds no row (found "train[5:2]")'),
    ({f"{TRAIN}/split": "train[:0]"}, [f"{TRAIN}/split"], "this slice holds no row"),
    ({f"{TRAIN}/split": "train[-5:-5]"}, [f"{TRAIN}/split"], "this slice holds no row"),
    ({f"{TRAIN}/split": "train[:101%]"}, [f"{TRAIN}/split"], "a part of more than 100 %"),
    ({f"{TRAIN}/format": "template"}, [f"{TRAIN}/template"], "format template needs the Jinja of each turn"),
    ({f"{TRAIN}/template": {"user": "a", "assistant": "b"}}, [f"{TRAIN}/template"],
     "this section belongs to format template"),
    ({f"{TRAIN}/subset": "en"}, [f"{TRAIN}/subset"], "only Hub datasets have subsets"),
    ({f"{TRAIN}/columns": {"text": "body"}}, [f"{TRAIN}/columns/text"], "format messages has no such column"),
    ({f"{TRAIN}/columns": {"messages": "rejected"}}, [f"{TRAIN}/columns/messages"],
     'not to be learned (found "rejected"); expected the'),
    ({f"{TRAIN}/columns": {"messages": "Rejected_talk"}}, [f"{TRAIN}/columns/messages"],
     "rejected answers of preference data"),
    ({f"{TRAIN}/columns": {"messages": ""}}, [f"{TRAIN}/columns/messages"], "too short"),
    ({"/data/held_out": {"sources": [MINIMAL["data"]["train"][0]]}}, ["/data/held_out/sources/0"],
     "are measured must not be trained on"),
    # one place against another
    ({"/training": {"epochs": 1, "max_steps": 2}}, ["/training/max_steps"], "epochs and max_steps exclude each other"),
    ({"/training": {"warmup_steps": 1, "warmup_ratio": 0.1}}, ["/training/warmup_ratio"], "exclude each other"),
    ({"/training": {"lr_scheduler": "constant", "warmup_steps": 5}}, ["/training/warmup_steps"],
     "this scheduler has no warm-up"),
    ({"/training": {"max_steps": 5, "warmup_steps": 6}}, ["/training/warmup_steps"],
     "the warm-up is longer than the run"),
    # methods
    ({f"{TRAIN}/format": "preference"}, [f"{TRAIN}/format"],
     'method sft learns from other rows (found "preference"); '
     "expected one of messages, sharegpt, alpaca, prompt_completion, text, "),
    ({"/training/method": "dpo"}, [f"{TRAIN}/format"],
     'expected one of preference. Write these rows\' method in training.method: "sft"'),
    ({**DPO, "/data/held_out": {"sources": [{"source": "x", "format": "messages"}]}},
     ["/data/held_out/sources/0/format"], "method dpo learns from other rows"),
    ({"/training/dpo": {"beta": 0.1}}, ["/training/dpo"],
     'these are settings of method dpo (found method "sft"); expected no dpo, or'),
    ({**DPO, "/data/packing": True}, ["/data/packing"],
     "rows of this method cannot be packed: answers are compared whole"),
    ({**DPO, "/data/train_on": "all"}, ["/data/train_on"], "this method compares answers; prompts are not learned"),
    ({**DPO, "/model/precision": "full"}, ["/model/precision"],
     "this method compares with the base, of which there would have to be a second copy "
     '(found "full" with method dpo)'),
    ({**DPO, "/training/dpo": {"label_smoothing": 0.1}}, ["/training/dpo/label_smoothing"],
     "Choose loss_type robust for pairs"),
    ({**DPO, "/training/dpo": {"loss_type": "exo_pair"}}, ["/training/dpo/label_smoothing"],
     "expected more than 0, such as 0.001"),
    ({**DPO, "/training/dpo": {"loss_type": "dpo"}}, ["/training/dpo/loss_type"], "not one of the allowed values"),
    ({**DPO, "/training/rpo_alpha": 0.1}, ["/training/rpo_alpha"], "unknown key"),
    ({f"{TRAIN}/format": "kto", "/training/method": "orpo"}, [f"{TRAIN}/format"],
     'Write these rows\' method in training.method: "kto"'),
    ({f"{TRAIN}/format": "preference"}, [f"{TRAIN}/format"],
     'Write these rows\' method in training.method: "dpo" or "orpo"'),
    ({**DPO, "/training/kto": {}}, ["/training/kto"], "these are settings of method kto"),
    ({**KTO, "/training/batch_size": 1}, ["/training/batch_size"],
     "this method compares the rows of a micro-batch with each other (found 1 with method kto); expected at least 2"),
    ({**KTO, "/training/micro_batch": 1}, ["/training/micro_batch"],
     "this method compares the rows of a micro-batch with each other"),
    ({**KTO, "/model/precision": "full"}, ["/model/precision"], "this method compares with the base"),
    ({**DPO, f"{TRAIN}/columns": {"chosen": "rejected"}}, [f"{TRAIN}/columns/chosen"],
     "rejected answers of preference data are not to be"),
    ({**HELD_OUT, "/evaluation/gates": [{"metric": "reward_margin", "at_least": 0}]}, ["/evaluation/gates/0/metric"],
     'this figure is measured on pairs of answers (found "reward_margin" with method sft)'),
    ({**DPO, "/evaluation/gates": [{"metric": "preference_accuracy", "at_least": 0.5, "of": ["trained", "adapter"]}]},
     ["/evaluation/gates/0/of/1"], "this figure is measured of the trained model alone"),
    ({**DPO, "/evaluation/gates": [{"metric": "preference_accuracy", "at_least": 1.5}]},
     ["/evaluation/gates/0/at_least"], "no model can pass this gate on preference_accuracy"),
    ({**DPO, **NONE_HELD_OUT, "/evaluation/gates": [{"metric": "reward_margin", "at_least": 0}]},
     ["/evaluation/gates/0"], "a gate needs held-out rows"),
    *(({"/evaluation/tasks": tasks}, [f"/evaluation/tasks/{pointer}"], words) for tasks, pointer, words in (
        (["arc_easy", {"name": "arc_easy", "limit": 5}], "1", 'this benchmark is there twice (found "arc_easy")'),
        ([{"name": "own", "rows": {}}], "0/rows", "this is about a source"),
        ([{"name": "x", "subset": "y"}], "0/subset", "about a source"),
        ([{"name": "own", "source": "http://x/y", "rows": {}}], "0/source", "expected hf://datasets/org/name"),
        ([{"name": "x", "source": "y", "split": "test"}], "0/split", "says by itself which splits it takes"),
        ([{"name": "own", "source": "y", "rows": {"choices": ["a", "b"], "choices_column": "c"}}], "0/rows/choices",
         "exclude each other"),
        (["two words"], "0", "none of the allowed forms"))),
    ({"/evaluation/gates": [{"metric": "arc_easy:acc", "at_least": 0.5}]}, ["/evaluation/gates/0/metric"],
     "expected evaluation.tasks"),
    ({"/evaluation/tasks": ["arc_easy"], "/evaluation/gates": [{"metric": "arc_easy:acc", "at_least": 2}]},
     ["/evaluation/gates/0/at_least"], "no model can pass this gate on arc_easy:acc"),
    ({"/evaluation/tasks": ["a"], "/evaluation/gates": [{"metric": "a:acc", "at_least": 0.5, "of": ["adapter"]}]},
     ["/evaluation/gates/0/of/0"], "measured of the trained model alone"),
    *(({"/evaluation/tasks": ["arc_easy", {"name": "own", "source": "x", "rows": rows}],
        "/evaluation/gates": [{"metric": "arc_easy:any", "at_least": 0}, {"metric": found, "at_least": 0}]},
       ["/evaluation/gates/1/metric"], f"a gate on what is not measured (found \"{found}\"); expected {wanted}")
      for rows, found, wanted in (({}, "own:acc", "own:exact_match"),
                                  ({"choices": ["a", "b"]}, "own:exact_match", "own:acc or own:acc_norm"))),
    ({"/evaluation/judge": {"model": "m"}}, ["/evaluation/judge"],
     "there is no answer to judge; expected evaluation.prompts"),
    *(({"/evaluation/tasks": tasks, "/evaluation/gates": [{"metric": "arc_easy:acc", "at_least": 0, "of": of}], **more},
       [place], words)
      for tasks, of, more, place, words in (
          ([{"name": "arc_easy", "merged": True}], ["trained"], {}, "/evaluation/tasks/0/merged",
           'expected export.merged with "16bit"'),
          (["arc_easy"], ["merged"], MERGED, "/evaluation/gates/0/of/0", "of the trained model alone"),
          ([{"name": "arc_easy", "merged": True}], ["adapter"], MERGED, "/evaluation/gates/0/of/0",
           "of the trained model alone"))),
    ({**ASKED, "/evaluation/metrics": ["choice"], "/evaluation/choices": ["A", "B"],
      "/evaluation/judge": {"model": "m"}},
     ["/evaluation/judge"], "there is no answer to judge"),
    ({"/evaluation/gates": [{"metric": "judge_win_rate", "at_least": 0.5, "of": ["adapter"]}]},
     ["/evaluation/gates/0/metric", "/evaluation/gates/0/of/0"], "a gate on what is not measured"),
    ({"/training/early_stopping": {"patience": 3}, **HELD_OUT}, ["/training/early_stopping"],
     "expected training.eval_steps"),
    ({"/training/keep": "best", **HELD_OUT}, ["/training/keep"], "expected training.eval_steps"),
    ({"/training/eval_steps": 5, **NONE_HELD_OUT}, ["/training/eval_steps"],
     "there are no held-out rows to evaluate on (found 5)"),
    ({"/model/precision": "full", "/lora": {}}, ["/lora"], "there is no adapter when every weight is trained"),
    ({"/model/precision": "full", "/data/packing": True}, ["/data/packing"], "packing is offered for adapters only"),
    ({"/lora": {"targets": ["q_proj", "lm_head"]}}, ["/lora/targets/1"], "trained whole or not at all"),
    ({"/model/backend": "peft", "/data/packing": True}, ["/data/packing"], "cannot keep packed rows apart"),
    ({"/model/backend": "peft", "/training/gradient_checkpointing": "unsloth"}, ["/training/gradient_checkpointing"],
     "unsloth backend"),
    ({"/evaluation/exact_match_rows": 5, **NONE_HELD_OUT}, ["/evaluation/exact_match_rows"],
     "exact match needs held-out rows"),
    (
        {"/evaluation/gates": [{"metric": "held_out_loss", "gain_at_least": 0}], **NONE_HELD_OUT},
        ["/evaluation/gates/0"],
        "a gate needs held-out rows",
    ),
    ({"/data/held_out": True}, ["/data/held_out"],
     'none of the allowed forms (found true); expected "auto" or false or an object'),
    ({"/data/held_out": "atuo"}, ["/data/held_out"], 'Did you mean "auto"?'),
    ({"/evaluation/gates": [{"metric": "exact_match", "at_least": 0.5}], **HELD_OUT}, ["/evaluation/gates/0"],
     "needs exact_match_rows"),
    ({"/evaluation/gates": [{"metric": "perplexity"}], **HELD_OUT}, ["/evaluation/gates/0"], "no bound"),
    ({"/evaluation/gates": {"max_held_out_loss": 1}, **HELD_OUT}, ["/evaluation/gates"], "list"),
    (
        {"/evaluation/gates": [{"metric": "exact_match", "rise_at_most": 0.1}],
         "/evaluation/exact_match_rows": 4, **HELD_OUT},
        ["/evaluation/gates/0/rise_at_most"],
        "a rise of this figure is an improvement",
    ),
    ({"/evaluation/gates": [{"metric": "perplexity", "at_least": 3, "at_most": 2}], **HELD_OUT},
     ["/evaluation/gates/0"], "no figure"),
    *(
        ({"/evaluation/gates": [{"metric": metric, bound: value}], "/evaluation/exact_match_rows": 4, **HELD_OUT},
         [f"/evaluation/gates/0/{bound}"],
         f"no model can pass this gate on {metric} (found {value}); expected {expected}")
        for metric, bound, value, expected in (
            ("exact_match", "at_least", 1.01, "at most 1"), ("exact_match", "at_most", -0.5, "at least 0"),
            ("exact_match", "gain_at_least", 2, "at most 1"), ("held_out_loss", "at_most", 0, "more than 0"),
            ("held_out_loss", "at_most", -1, "more than 0"), ("perplexity", "at_most", 1, "more than 1"))
    ),
    ({"/model/precision": "16bit", "/export/merge_onto": "trained"}, ["/export/merge_onto"], "the same with 16 bits"),
    *(({**ASKED, "/evaluation/metrics": [metric], **more}, [pointer], words) for metric, more, pointer, words in (
        ("regex", {}, "/evaluation/metrics/0", "the metric regex needs to know regex"),
        ("choice", {}, "/evaluation/metrics/0", "expected evaluation.choices or evaluation.choices_column"),
        ("bleu", {"/evaluation/choices_column": "options"}, "/evaluation/choices_column",
         'expected "choice" among evaluation.metrics'),
        ("choice", {**LETTERS, "/evaluation/choices_column": "options"}, "/evaluation/choices_column",
         "exclude each other"),
        ("bleu", {"/evaluation/regex": "(a)"}, "/evaluation/regex",
         'no metric reads this (found "(a)"); expected "regex" among'),
        ("bleu", {"/evaluation/json_schema": {}}, "/evaluation/json_schema", "no metric reads this (found {})"),
        ("regex", {"/evaluation/regex": "(a"}, "/evaluation/regex", "not a regular expression of Python: missing )"),
        ("regex", {"/evaluation/regex": "a+"}, "/evaluation/regex", "it has no group"),
        ("json_valid", {"/evaluation/json_schema": {"type": "text"}}, "/evaluation/json_schema",
         "not a JSON Schema: /type"),
        ("json_valid", {"/evaluation/json_schema": {"pattern": "(a"}}, "/evaluation/json_schema",
         "not a JSON Schema: /pattern"),
        ("json_valid", {"/evaluation/json_schema": {"$ref": "http://x/y"}}, "/evaluation/json_schema",
         "no place of the same schema"),
        ("json_valid", {"/evaluation/json_schema": {"not": {"$ref": "#/a"}}}, "/evaluation/json_schema",
         "no place of the same schema"),
        ("json_valid", {"/evaluation/json_schema": {"$id": "urn:x"}}, "/evaluation/json_schema",
         "$id is not supported"),
        ("json_valid", {"/evaluation/json_schema": {"$schema": "urn:x"}}, "/evaluation/json_schema",
         "a dialect that is known"),
        ("json_valid", {"/evaluation/json_schema": {"$schema": [1]}}, "/evaluation/json_schema",
         "a dialect that is known"),
        ("json_valid", {"/evaluation/json_schema": {"pattern": "a{99999999999}"}}, "/evaluation/json_schema",
         "a pattern of it"),
        ("json_valid", {"/evaluation/json_schema": {"enum": [[i] for i in range(6000)]}}, "/evaluation/json_schema",
         "at most 16384"),
        ("choice", {"/evaluation/choices": ["A", " "]}, "/evaluation/choices", "not blank"),
        ("choice", {"/evaluation/choices": ["A", "A "]}, "/evaluation/choices", "differ in more than white space"),
        ("bleu", {"/evaluation/gates": [{"metric": "exact_match", "at_least": 0}]}, "/evaluation/gates/0/metric",
         "what is not measured"),
        ("bleu", {"/evaluation/gates": [{"metric": "bleu", "at_least": 101}]}, "/evaluation/gates/0/at_least",
         "at most 100"),
    )),
    ({"/resources": {"gpus": 5}, "/training": {"batch_size": 2, "gradient_accumulation_steps": 2}}, ["/resources/gpus"],
     "at most 4"),
    ({"/resources": {"gpus": 2}, "/training": {"micro_batch": 4, "batch_size": 4, "gradient_accumulation_steps": 1}},
     ["/resources/gpus"], "more GPUs than a step has forward passes (found 2); expected at most 1"),
    ({"/resources": {"gpus": "all", "weights": "spread"}},
     ["/model/backend", "/model/precision", "/resources/gpus", "/training/optimizer"],
     "weights cannot be spread over GPUs with this"),
    ({"/evaluation/metrics": ["bleu"], **HELD_OUT}, ["/evaluation/metrics"],
     "nothing is asked that this would be about"),
    ({"/evaluation/max_minutes": 5, **HELD_OUT}, ["/evaluation/max_minutes"],
     "expected evaluation.exact_match_rows of at least 1"),
    ({"/evaluation": {"exact_match_rows": 5, "metrics": ["choice"], "choices": ["A", "B"], "max_minutes": 5},
      **HELD_OUT},
     ["/evaluation/max_minutes"], "none of the metrics has anything answered, and this bounds answers (found 5)"),
    ({"/evaluation/exact_match_rows": 5, **TEXT, **HELD_OUT}, ["/evaluation/exact_match_rows"],
     "plain text has no answer to match"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "pointers", "words"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_spec_names_the_place_and_the_rule(changes: dict[str, Any], pointers: list[str], words: str) -> None:
    faults = faults_with(changes)
    assert [fault.where for fault in faults] == pointers
    assert words in str(faults[0])


def test_all_faults_are_said_at_once_in_the_order_of_their_places() -> None:
    """Schema, cross-rules and values that no JSON should hold: a second run brings nothing new."""
    document = changed({"/data/train": [dict(MINIMAL["data"]["train"][0]) for _ in range(11)]})
    document["data"]["train"][2]["limit"] = 0
    document["data"]["train"][10]["source"] = "hf://bad"
    document["training"] = {"epochs": 1, "max_steps": 2}
    document["evaluation"] = {"max_new_tokens": float("nan")}
    document["lora"] = {"r": 2.5, "alpha": -1}
    document["output"] = {"uri": "hf://org/name"}
    del document["name"]
    raw = json.dumps(document).replace('"version": 1', '"version": 1, "version": 1').encode()
    with pytest.raises(SpecError) as caught:
        parse_spec(raw)
    assert [fault.where for fault in caught.value.faults] == [
        "/data/train/2/limit", "/data/train/10/source", "/evaluation/max_new_tokens", "/lora/alpha", "/lora/r",
        "/name", "/output/uri", "/training/max_steps", "/version",
    ]  # fmt: skip


def test_whole_numbers_may_have_a_point_as_json_schema_has_it() -> None:
    """As editors and writers of other languages have them; the job sees integers, and the run is the same one."""
    written = changed({"/training/max_steps": 20.0, "/lora/r": 8.0, "/version": 1.0, "/data/held_out": {"rows": 1e1}})
    plain = changed({"/training/max_steps": 20, "/lora/r": 8, "/version": 1, "/data/held_out": {"rows": 10}})
    spec = parse_spec(json.dumps(written).encode())
    assert "20.0" in json.dumps(written)
    assert json.dumps(spec.resolved) == json.dumps(parse_spec(json.dumps(plain).encode()).resolved)
    assert [type(value) for value in (spec.training.max_steps, spec.lora.r, spec.version)] == [int] * 3  # type: ignore[union-attr]


def test_a_misspelt_section_brings_no_wrong_advice_elsewhere() -> None:
    faults = faults_with({"/data/held_outt": {"rows": 5}, "/training/eval_steps": 5})
    assert [fault.where for fault in faults] == ["/data/held_outt"]


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        # A rule says what it can beside a fault of the same section ...
        ({"/training": {"lr": 1, "epochs": 1, "max_steps": 2}}, ["/training/lr", "/training/max_steps"]),
        ({"/training": {"batch_size": "2", "epochs": 1, "max_steps": 2}},
         ["/training/batch_size", "/training/max_steps"]),
        ({"/evaluation": {"prompts": 5, "gates": [{"metric": "rouge_l", "at_least": 0.1}]}},
         ["/evaluation/gates/0", "/evaluation/gates/0/metric", "/evaluation/prompts"]),
        # ... and nothing that hangs on a place of which nobody knows what is meant.
        ({"/training": {"epochs": "1", "max_steps": 2}}, ["/training/epochs"]),
        ({"/training": {"eval_step": 5, "early_stopping": {"patience": 1}}}, ["/training/eval_step"]),
        ({"/training": {"num_epochs": 1, "max_steps": 2}}, ["/training/num_epochs"]),
        ({"/lora/targets": ["lm_head", 5], "/training/compute": "fp8"}, ["/lora/targets/1"]),
        ({"/model": LEFT_OUT, "/lora": {"r": 8, "seed": 1}}, ["/model"]),
    ],
)  # fmt: skip
def test_rules_say_what_they_can_beside_other_faults(changes: dict[str, Any], places: list[str]) -> None:
    assert [fault.where for fault in faults_with(changes)] == places


@pytest.mark.parametrize(
    "source",
    ["hf://org/name", "hf://org/name@main", "hf://org/name@refs/pr/1",
     "hf://Org_1/na.me-2@0123456789abcdef0123456789abcdef01234567",
     "s3://bucket", "s3://bucket/", "s3://my.bucket-1/a b/user@host/x", "models/x@main", "../models/x", "/models/x",
     "./s3:/x", "x"],
)  # fmt: skip
def test_good_model_sources(source: str) -> None:
    assert parse({"/model/source": source}).model.source == source


def test_what_cannot_be_printed_is_not_in_a_message() -> None:
    """An address that was found and one that it collides with; both are shown as they could be typed."""
    place = "\U00016af6/out"
    with pytest.raises(SpecError) as refused:
        parse_spec(json.dumps(changed({"/model/source": place, "/output/uri": place})).encode())
    assert all(str(fault).isprintable() for fault in refused.value.faults)
    assert any(r"\ud81a\udef6" in fault.expected for fault in refused.value.faults)


@pytest.mark.parametrize(
    "split",
    [
        "train",
        "train[:10000]",
        "train[10%:20%]",
        "test[-500:]",
        "train[:]",
        "train[5:50%]",
        "train[-10:5]",
        "a.b-c_d[:1]",
    ],
)
def test_good_splits(split: str) -> None:
    assert parse({f"{TRAIN}/split": split}).data.train[0].split == split


def test_defaults_of_the_smallest_spec() -> None:
    spec = parse({})
    assert (spec.model.precision, spec.model.max_seq_length, spec.model.backend) == ("4bit", 2048, "unsloth")
    assert spec.lora is not None
    assert (spec.lora.r, spec.lora.alpha, spec.lora.dropout, spec.lora.targets) == (16, 16.0, 0.0, "all-linear")
    assert (spec.training.epochs, spec.training.max_steps) == (1.0, None)
    assert (spec.training.batch_size, spec.training.gradient_accumulation_steps, spec.training.learning_rate) == (
        2,
        4,
        2e-4,
    )
    assert (spec.training.warmup_steps, spec.training.warmup_ratio, spec.training.gradient_checkpointing) == (
        None,
        None,
        "auto",
    )
    assert spec.data.held_out == "auto"
    assert (spec.data.train[0].split, spec.data.train[0].weight, spec.data.train[0].columns) == ("train", 1.0, {})
    assert (spec.evaluation.prompts, spec.tracking) == ((), ("tensorboard",))


def test_full_precision_has_no_adapter_and_not_its_learning_rate() -> None:
    spec = parse({"/model/precision": "full"})
    assert (spec.lora, spec.training.learning_rate) == (None, 2e-5)
    assert parse({"/model/precision": "full", "/training": {"learning_rate": 2e-4}}).training.learning_rate == 2e-4
    assert parse({"/model/precision": "full", "/training": {"learning_rate": 2e-5}}).run_id == spec.run_id


def test_a_method_has_its_settings_and_its_rate() -> None:
    training = parse({**DPO, "/training/dpo": {"beta": 0.3}}).training
    assert training.dpo is not None
    assert (training.dpo.beta, training.dpo.loss_type, training.dpo.sft_weight, training.learning_rate) == (
        0.3,
        "sigmoid",
        0.0,
        5e-6,
    )
    assert parse({**DPO, "/training/learning_rate": 1e-4}).training.learning_rate == 1e-4
    assert (parse({}).training.method, parse({}).training.dpo) == ("sft", None)
    orpo = parse({"/training/method": "orpo", f"{TRAIN}/format": "preference", "/model/precision": "full"})
    assert (orpo.lora, orpo.training.learning_rate, orpo.training.orpo and orpo.training.orpo.beta) == (None, 8e-6, 0.1)
    kto = parse(KTO | {"/training/kto": {"undesirable_weight": 2}}).training.kto
    assert kto is not None
    assert (kto.beta, kto.desirable_weight, kto.undesirable_weight) == (0.1, 1.0, 2.0)


def test_without_a_method_the_run_id_is_that_of_a_spec_from_before_there_were_others() -> None:
    spec = parse({})
    older = {
        **spec.resolved,
        "training": {key: value for key, value in spec.resolved["training"].items() if key != "method"},
    }
    assert spec.run_id == dataclasses.replace(spec, resolved=older).run_id != parse(DPO).run_id


def test_max_steps_takes_the_place_of_epochs() -> None:
    training = parse({"/training/max_steps": 60}).training
    assert (training.epochs, training.max_steps) == (None, 60)


@pytest.mark.parametrize("section", load_schema("job")["properties"])
def test_a_section_that_is_none_is_said(section: str) -> None:
    """No rule of another section reads it."""
    with pytest.raises(SpecError):
        parse_spec(json.dumps(changed({f"/{section}": None})).encode())


def test_a_micro_batch_divides_the_rows_of_a_step() -> None:
    assert parse({}).training.micro_batch == "auto"
    assert parse({"/training/micro_batch": 4}).training.micro_batch == 4, "2 x 4 rows are a step by default"
    with pytest.raises(
        SpecError, match=r"/training/micro_batch: .*\(found 3\); expected a divisor of the 8 sequences of a step"
    ):
        parse({"/training/micro_batch": 3})
    with pytest.raises(SpecError, match="a divisor of the 2 sequences"):
        parse({"/training/micro_batch": 4, "/training/batch_size": 1, "/training/gradient_accumulation_steps": 2})
    assert type(parse({"/training/micro_batch": 2.0}).training.micro_batch) is int
    for value in ("many", 0, True, 10**9):
        with pytest.raises(
            SpecError, match=r'/training/micro_batch: .*expected "auto" or a whole number from 1 to 65536'
        ):
            parse({"/training/micro_batch": value})


# ------------------------------------------------------------------------------------------------- run id


def test_run_id_is_sixteen_hex_digits() -> None:
    assert len(parse({}).run_id) == 16
    assert int(parse({}).run_id, 16) >= 0


@pytest.mark.parametrize(
    "changes",
    [{"/output/uri": "elsewhere"}, {"/resources/price_per_hour": 2.49},
     {"/$schema": "../job.schema.json"}, {"/lora": {}}, {"/lora/r": 16}, {"/lora/dropout": 0},
     {"/lora/alpha": 16.0}, {"/training/epochs": 1}, {"/training/epochs": 1.0},
     {"/training/learning_rate": 2e-4}, {"/evaluation": {}},
     {"/training/weight_decay": 1e-2}, {f"{TRAIN}/weight": 1}, {f"{TRAIN}/columns": {}}, {"/tracking": ["tensorboard"]},
     {"/training/gradient_checkpointing": "auto"}, {"/training/micro_batch": "auto"}, {"/training/method": "sft"}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_run_id_stays_the_same_where_the_work_is_the_same(changes: dict[str, Any]) -> None:
    assert parse(changes).run_id == parse({}).run_id


def test_run_id_does_not_depend_on_the_order_of_keys() -> None:
    backwards = json.dumps(dict(reversed(MINIMAL.items()))).encode()
    assert parse_spec(backwards).run_id == parse({}).run_id


def test_without_held_out_rows_the_run_id_is_that_of_a_spec_from_before_there_was_a_default() -> None:
    spec = parse(NONE_HELD_OUT)
    older = {**spec.resolved, "data": {key: value for key, value in spec.resolved["data"].items() if key != "held_out"}}
    assert spec.run_id == dataclasses.replace(spec, resolved=older).run_id
    assert spec.resolved["data"]["held_out"] is False, "the stored spec says so"
    assert parse({}).run_id == parse({"/data/held_out": "auto"}).run_id != spec.run_id


def test_run_id_takes_minus_zero_for_zero() -> None:
    assert parse({"/lora/dropout": -0.0}).run_id == parse({"/lora/dropout": 0}).run_id


@pytest.mark.parametrize(
    "changes",
    [{"/name": "other"}, {"/model/source": "hf://org/other"}, {"/model/precision": "16bit"}, {"/lora/seed": 1},
     {"/training/seed": 1}, {"/training/learning_rate": 1e-4},
     {f"{TRAIN}/split": "train[:9]"}, {f"{TRAIN}/limit": 9}, {"/data/train_on": "all"},
     {"/evaluation/max_new_tokens": 1}, {"/tracking": []}, {"/data/held_out": {"rows": 1}}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_run_id_changes_with_anything_else(changes: dict[str, Any]) -> None:
    assert parse(changes).run_id != parse({}).run_id


def test_the_resolved_spec_resolves_to_itself() -> None:
    """What is stored as spec.json runs as the same job again."""
    for changes in ({"/data/held_out": {"fraction": 0.5}, "/training/warmup_ratio": 0}, DPO):
        spec = parse(changes)
        again = parse_spec(json.dumps(spec.resolved).encode())
        assert (again, again.resolved, again.run_id) == (spec, spec.resolved, spec.run_id)


def test_placeholders_are_filled_in_and_change_no_run_id() -> None:
    places = {"/output/uri": "s3://{name}/{run_id}/{name}", "/output/checkpoints": {"uri": "kept/{run_id}"}}
    spec = parse(places)
    assert spec.run_id == parse({}).run_id
    assert spec.output.uri == spec.resolved["output"]["uri"] == f"s3://small/{spec.run_id}/small"
    assert spec.output.checkpoints.uri == f"kept/{spec.run_id}"
    assert parse(places | {"/training/seed": 1}).output.uri != spec.output.uri
    again = parse_spec(json.dumps(spec.resolved).encode())
    assert (again, again.run_id) == (spec, spec.run_id), "what is stored names the place itself"
    local = json.dumps(changed(places | {"/output/uri": "out/{run_id}"})).encode()
    rendered = render(local, "docker", options(RenderArguments(parameters="1b")))
    assert f'mkdir -p "$PWD"/out/{spec.run_id}\n' in rendered


def test_specs_do_not_share_their_defaults() -> None:
    first = parse({})
    first.resolved["tracking"].append("wandb")
    first.resolved["data"]["train"][0]["columns"]["messages"] = "x"
    assert parse({}).tracking == ("tensorboard",)
    assert parse({}).data.train[0].columns == {}


# --------------------------------------------------------------------------------------------------- cost


def cpu_seconds() -> float:
    """Processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_spec_is_read_in_under_a_second_without_heavy_imports() -> None:
    program = (
        "import sys; from job.spec import parse_spec; parse_spec(sys.stdin.buffer.read());"
        "heavy = ('torch', 'transformers', 'boto3', 'numpy', 'pyarrow', 'huggingface_hub');"
        "print([m for m in heavy if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):  # the processor's seconds: other processes share the cores
        start = cpu_seconds()
        done = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(MINIMAL).encode(), capture_output=True, check=True
        )
        seconds.append(cpu_seconds() - start)
        assert done.stdout.strip() == b"[]"
    assert min(seconds) < 1.0


def test_trackers_that_are_not_in_the_image_are_named_by_validate(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    for tracking, named in (
        (["tensorboard"], ""),
        (["wandb", "tensorboard", "trackio"], "lacks the packages for wandb, trackio"),
    ):
        path.write_text(json.dumps(changed({"/tracking": tracking})))
        stream = io.StringIO()
        command_validate(parser().parse_args(["validate", str(path), "--spec-only"]), Log(stream, json_lines=True))
        assert named in stream.getvalue()
        assert ("lacks the packages" in stream.getvalue()) == bool(named)


PLACES = {pointer for _, pointer in keys_of(load_schema("job"), load_schema("job"))}


@pytest.mark.parametrize(("name", "place"), NAMES.items())
def test_a_name_that_other_tools_have_says_where_it_is_here(name: str, place: str) -> None:
    assert place in PLACES
    with pytest.raises(SpecError) as caught:
        parse_spec(json.dumps(changed({f"/{name}": 1})).encode())
    assert [(fault.where, fault.hint) for fault in caught.value.faults] == [(f"/{name}", f"Here it is {place}")]


@pytest.mark.parametrize("name", [*INSTEAD])
def test_what_other_tools_set_and_a_spec_does_not_says_what_to_do_instead(name: str) -> None:
    """Whatever its section; and the places that it names are places."""
    assert name not in NAMES
    for written in (f"/{name}", f"/training/{name}"):
        (fault,) = faults_with({written: "x"})
        assert (fault.where, fault.message, fault.hint) == (written, "unknown key", INSTEAD[name])
    assert set(re.findall(r"/[a-z]+(?:/[a-z0-9_]+)+", INSTEAD[name])) <= PLACES


BELONGS = {
    "/training/max_seq_length": "Here it is /model/max_seq_length",
    "/epochs": "Here it is /training/epochs",
    "/learning_rate": "Here it is /training/learning_rate",
    "/lora/tracking": "Here it is /tracking",
    "/every_steps": "Here it is /output/checkpoints/every_steps",
    "/data/completion": "Here it is /data/train/0/columns/completion",
    "/seed": "Here it is /lora/seed or /training/seed",
    "/training/learningrate": 'Did you mean "learning_rate"?',
    "/learnig_rate": "Did you mean /training/learning_rate?",
    "/model/gradient_acumulation_steps": "Did you mean /training/gradient_accumulation_steps?",
    "/perdevice_train_batch_size": "Did you mean /training/batch_size?",
    "/model/name": "Here it is /model/source",
    "/data/train/0/type": "Here it is /data/train/0/format",
    "/output/path": "Here it is /output/uri",
    "/model/dtype": "Here it is /model/precision",
    "/qlora": "Here it is /model/precision",
    "/training_file": "Here it is /data/train",
    "/neat-packing": "Here it is /data/packing",
    "/data/nothing_like_it": "",
}


@pytest.mark.parametrize(("written", "hint"), BELONGS.items())
def test_a_key_of_another_place_or_spelling_says_which(written: str, hint: str) -> None:
    assert [(fault.where, fault.hint) for fault in faults_with({written: 1})] == [(written, hint)]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("case", pairs.CASES)
def test_what_is_run_on_a_gpu_is_a_spec(case: str, steps: int, tmp_path: Path) -> None:
    row = {"instruction": "Say so.", "input": "", "output": "So."}
    rows = [row | {"chosen": f"So {number}.", "rejected": f"No {number}."} for number in range(pairs.HELD_OUT + 40)]
    (tmp_path / pairs.REAL).write_text(json.dumps(rows), "utf-8")
    asked = Namespace(folder=tmp_path, rows=tmp_path, backend="peft", steps=steps)
    spec = parse_spec(pairs.spec_of(case, asked).read_bytes())
    others = {"identity": "dpo", "grpo-engine": "grpo", "second": "sft", "second-from-adapter": "sft"}
    assert spec.training.method == others.get(case, case)
    assert parse_spec(json.dumps(dpo_bench.spec_of(tmp_path, 4)).encode()).training.max_steps == 4


TWO_ADAPTERS = [{"adapter": "a", "weight": 0.5}, {"adapter": "b", "weight": 0.5}]


@pytest.mark.parametrize(
    "changes",
    [
        *[example.name for example in sorted((Path(__file__).parents[2] / "schemas" / "examples").glob("*.json"))],
        {"/model/adapter": "a"},
        {"/model/adapters": TWO_ADAPTERS},
        {"/model/adapters": TWO_ADAPTERS, "/model/combine": {"method": "ties", "density": 0.5}},
        {"/model/precision": "full"},
        {"/model/backend": "peft", "/model/precision": "8bit"},
        {"/data/train/0/format": "preference", "/training/method": "dpo", "/model/adapter": "a"},
        {"/evaluation": {"tasks": ["arc_easy", {"name": "own", "source": "t.jsonl", "rows": {"question": "q"}}]}},
        {"/evaluation": {"tasks": [{"name": "arc_easy", "source": "t.jsonl"}]}},
        {"/data/held_out": False},
        {"/data/replay": {"fraction": 0.1}},
    ],
    ids=str,
)
def test_a_stored_spec_is_the_same_run_again(changes: Any) -> None:
    """A run stores its spec with every default; `chat` and whoever runs it again read that one."""
    examples = Path(__file__).parents[2] / "schemas" / "examples"
    document = json.loads((examples / changes).read_text()) if isinstance(changes, str) else changed(changes)
    spec = parse_spec(json.dumps(document).encode())
    again = parse_spec(json.dumps(spec.resolved).encode())
    assert again == spec
    assert again.run_id == spec.run_id
    assert jsonschema.Draft7Validator(job_schema()).is_valid(spec.resolved), "an editor says so, too"


def test_columns_the_wrong_way_round_are_turned() -> None:
    (fault,) = faults_with({"/data/train/0/columns": {"question": "instruction"}})
    assert 'Our name comes first, then your column\'s: {"instruction": "question"}' in str(fault)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_adapters_that_are_taken_away_again_are_refused(method: str) -> None:
    changes = {"/model/combine": {"method": method}, "/lora": {"r": 32, "alpha": 32}}
    pair = [{"adapter": "a", "weight": 0.5}, {"adapter": "a", "weight": -0.5}]
    with pytest.raises(SpecError) as caught:
        parse({"/model/adapters": pair, **changes})
    assert "/model/adapters" in [fault.where for fault in caught.value.faults]
    assert "taken away again" in str(caught.value)
    parse({"/model/adapters": [pair[0], {"adapter": "b", "weight": -0.5}], **changes})
