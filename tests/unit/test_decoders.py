"""Decoders of all kinds: training and evaluation embed alike; unsupported models are refused when they are fetched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from langptune.config.models import VerifierEntry
from langptune.errors import UserError
from langptune.models.load import load_decoder
from langptune.models.materialise import materialise
from langptune.ranking.decoder import embed
from langptune.training.contrastive import ContrastiveTrainer
from tests.conftest import ROOT
from tests.unit.test_models import decoder_entry

pytestmark = pytest.mark.models
CPU = torch.device("cpu")
TEXTS = ["a quiet film about war", "space", "a long, loud musical with many songs and a happy end " * 3, ""]
PROMPT = "Represent this sentence for searching relevant passages: "
CONFIG, POOLING, MODULES = "config_sentence_transformers.json", "1_Pooling/config.json", "modules.json"


@pytest.fixture
def variant(real_models, tmp_path):
    """A function that copies the real MiniLM to a folder with changed JSON files; its weights are shared."""

    def make(changes: dict[str, object] | None = None, name: str = "variant") -> Path:
        folder, source = tmp_path / name, real_models / "minilm-l6"
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".safetensors":
                os.link(file, target)
            else:
                shutil.copyfile(file, target)
        for file, changed in (changes or {}).items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            config = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps(changed if isinstance(changed, list) else {**config, **changed}))
        return folder

    return make


def modules(*more: tuple[str, str]) -> list[dict[str, object]]:
    """``modules.json`` of MiniLM with further modules (type, path) before the last one."""
    known = "sentence_transformers.models."
    rows = [(f"{known}Transformer", ""), (f"{known}Pooling", "1_Pooling"), *more, (f"{known}Normalize", "2_Normalize")]
    return [{"idx": at, "name": str(at), "path": path, "type": kind} for at, (kind, path) in enumerate(rows)]


def in_training(model, texts, bf16: bool = False) -> np.ndarray:
    """Vectors from contrastive training, through the trainer's own method."""
    context = lambda: torch.autocast("cpu", torch.bfloat16, enabled=bf16)  # noqa: E731
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped, device=CPU),
        compute_loss_context_manager=context,
    )
    return ContrastiveTrainer._embed(trainer, model, texts).detach().numpy()


def fetched(folder: Path, target: Path, **changes) -> dict[str, object]:
    return materialise(decoder_entry({"folder": str(folder)}, **changes), "mine", target)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("bf16", [False, True])
def test_an_ordinary_decoder_embeds_as_sentence_transformers_does_bit_for_bit(real_models, bf16):
    """Without prompts and cuts, vectors equal those of ``encode``, in evaluation and in training."""
    model = load_decoder(real_models / "minilm-l6", decoder_entry({"folder": "x"}), CPU)
    texts = sorted({*TEXTS, *(f"{'good ' * (n % 9)}film {n}" for n in range(80))})
    texts = texts[::8] if bf16 else texts  # bfloat16 is emulated on many CPUs, and slow
    form = {"batch_size": 64, "normalize_embeddings": True, "convert_to_numpy": True, "show_progress_bar": False}
    assert np.array_equal(embed(model, texts).vectors, model.encode(texts, **form))
    parts = []
    for start in range(0, len(texts), 64):
        features = model.preprocess(texts[start : start + 64])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            parts.append(model(features)["sentence_embedding"].float())
    expected = torch.nn.functional.normalize(torch.cat(parts), dim=-1).detach().numpy()
    assert np.array_equal(in_training(model, texts, bf16), expected)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("config", "dimensions"),
    [
        ({"prompts": {"query": PROMPT, "passage": ""}, "default_prompt_name": "query"}, 384),
        ({"prompts": {"s2s": "Instruct: find alike\nQuery: "}, "default_prompt_name": "s2s"}, 384),
        ({"truncate_dim": 16}, 16),
        ({"truncate_dim": 128, "prompts": {"q": "query: "}, "default_prompt_name": "q"}, 128),
        ({"truncate_dim": 512}, 384),
    ],
)
def test_training_and_evaluation_embed_the_same_text_alike(variant, tmp_path, config, dimensions):
    folder = variant({CONFIG: config})
    entry = decoder_entry({"folder": str(folder)}, dimensions=dimensions, query_prefix="q: ")
    facts = materialise(entry, "mine", tmp_path / "out")
    model = load_decoder(tmp_path / "out", entry, CPU)
    evaluated = embed(model, TEXTS, "q: ").vectors
    trained = in_training(model, ["q: " + text for text in TEXTS])
    assert evaluated.shape == trained.shape == (len(TEXTS), dimensions)
    assert np.allclose(evaluated, trained, atol=1e-6)
    assert np.allclose(np.linalg.norm(evaluated, axis=1), 1, atol=1e-5)
    # Only prefixes of the registry are used; prompts that the config names beside them are reported.
    plain = load_decoder(variant(name="plain"), decoder_entry({"folder": "x"}), CPU)
    expected = embed(plain, TEXTS, "q: ").vectors[:, :dimensions]
    assert np.allclose(evaluated, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    named = {key: text for key, text in config.get("prompts", {}).items() if text}
    assert facts.get("prompts_not_used", {}) == named
    # A decoder that was trained and saved has the same form.
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    again = load_decoder(tmp_path / "saved", entry, CPU)
    assert np.array_equal(embed(again, TEXTS, "q: ").vectors, evaluated)


def test_a_prompt_that_the_registry_names_is_not_reported(variant, tmp_path):
    folder = variant({CONFIG: {"prompts": {"query": PROMPT, "passage": ""}, "default_prompt_name": "query"}})
    assert "prompts_not_used" not in fetched(folder, tmp_path / "out", query_prefix=PROMPT)


def test_dimensions_are_those_that_come_out(variant, tmp_path):
    """Dimensions after the pooling, after a Dense module, and after truncate_dim."""
    dense = ("sentence_transformers.models.Dense", "2_Dense")
    config = {"in_features": 384, "out_features": 24, "bias": False, "activation_function": "torch.nn.Identity"}
    folder = variant({MODULES: modules(dense), "2_Dense/config.json": config})
    weight = torch.randn(24, 384, generator=torch.Generator().manual_seed(0))
    save_file({"linear.weight": weight}, folder / "2_Dense/model.safetensors")
    with pytest.raises(UserError, match="mine: dimensions 384, but the model has 24"):
        fetched(folder, tmp_path / "out")
    fetched(folder, tmp_path / "out", dimensions=24)
    model = load_decoder(tmp_path / "out", decoder_entry({"folder": "x"}, dimensions=24), CPU)
    assert embed(model, TEXTS).vectors.shape == in_training(model, TEXTS).shape == (len(TEXTS), 24)
    with pytest.raises(UserError, match="mine: dimensions 384, but the model has 16"):
        fetched(variant({CONFIG: {"truncate_dim": 16}}, "cut"), tmp_path / "cut-out")
    bare = variant(name="bare")
    (bare / MODULES).unlink()
    with pytest.raises(UserError, match="mine: dimensions 12, but the model has 384"):
        fetched(bare, tmp_path / "bare-out", dimensions=12)


@pytest.mark.parametrize(
    ("changes", "entry", "message"),
    [
        ({POOLING: {"include_prompt": False}}, {"query_prefix": "query: "}, "leaves the prompt out of pooling"),
        ({POOLING: {"include_prompt": False}}, {"item_prefix": "passage: "}, "leaves the prompt out of pooling"),
        ({MODULES: modules(("sentence_transformers.models.Router", "3_R"))}, {}, "unsupported: module 'Router'"),
        ({MODULES: modules(("sentence_transformers.models.LSTM", "3_L"))}, {}, "unsupported: module 'LSTM'"),
        ({MODULES: modules(("sentence_transformers.models.Dense", "3_D"))}, {}, r"keeps no 3_D/model\.safetensors"),
        ({MODULES: modules(("custom_st.Transformer", ""))}, {}, r"'custom_st\.Transformer' in modules\.json is code"),
        (
            {"config.json": {"model_type": "acme", "auto_map": {"AutoModel": "modeling_acme.AcmeModel"}}},
            {},
            "unsupported: model type 'acme' needs code",
        ),
        ({}, {"max_tokens": 513}, "max_tokens 513, but the model has positions for 512 tokens; write at most 512"),
        (
            {"config.json": {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}},
            {"max_tokens": 514},
            "positions for 512 tokens",
        ),
        ({POOLING: {"pooling_mode_max_tokens": True}}, {}, r"pooling 'mean' contradicts .* 'max and mean'"),
        ({POOLING: {"pooling_mode": "cls"}}, {}, r"pooling 'mean' contradicts .* 'cls'"),
    ],
)
def test_what_cannot_be_embedded_alike_is_refused_when_it_is_fetched(variant, tmp_path, changes, entry, message):
    with pytest.raises(UserError, match=message) as caught:
        fetched(variant(changes), tmp_path / "out", **entry)
    assert "\n" not in str(caught.value) and "delete the folder" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({POOLING: {"include_prompt": False}}, {}),
        ({POOLING: {"pooling_mode": "lasttoken"}}, {"pooling": "last"}),
        ({"config.json": {"auto_map": {"AutoModel": "modeling_bert.BertModel"}}}, {}),
        ({"config.json": {"model_type": "t5", "n_positions": 256, "relative_attention_num_buckets": 32}}, {}),
        ({}, {"max_tokens": 512}),
    ],
)
def test_what_can_be_embedded_is_taken(variant, tmp_path, changes, entry):
    fetched(variant(changes), tmp_path / "out", **{"max_tokens": 256, **entry})


def test_a_verifier_keeps_to_its_positions(variant, tmp_path):
    source = {"folder": str(variant())}
    fields = {"role": "verifier", "title": "V", "source": source, "licence": "x", "parameters": 1}
    with pytest.raises(UserError, match="max_tokens 1024, but the model has positions for 512"):
        materialise(VerifierEntry.model_validate({**fields, "max_tokens": 1024}), "v", tmp_path / "out")


def test_nothing_embeds_beside_the_one_function():
    """Only ``unit_vectors`` turns texts into vectors: a model's own ``encode`` may add what training does not have."""
    places = {"sentence_embedding": set(), ".preprocess(": set(), "show_progress_bar": set()}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for sign, found in places.items():
            if sign in path.read_text(encoding="utf-8"):
                found.add(path.name)
    assert places["sentence_embedding"] == places[".preprocess("] == {"decoder.py"}
    assert places["show_progress_bar"] == {"load.py"}, "the verifier's predict, which is no embedding"
