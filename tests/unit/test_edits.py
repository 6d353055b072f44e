"""Edited rows of CL: true of their targets, their shares and frequencies, the same after a resume; and the anchor."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
import torch

from langptune.config.base import read_yaml
from langptune.config.datasets import DatasetEntry
from langptune.config.phases import Phase
from langptune.data import contracts, protocols, readers
from langptune.errors import UserError
from langptune.interpretability import steering
from langptune.language.claims import Titles, extract
from langptune.language.tastes import Tastes, pattern, tastes_of
from langptune.profiles.text import history_text
from langptune.randomness import stream
from langptune.ranking.decoder import unit_vectors
from langptune.training import contrastive
from langptune.training.contrastive import Kind, Pairs, with_edits
from langptune.training.edits import SENTENCES, Edits
from tests import planted as p
from tests.conftest import ROOT
from tests.unit.test_checkpoints import spec_of, write_files
from tests.unit.test_decoder_texts import spec
from tests.unit.test_scoring import profiles, work

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = ["add", "strengthen", "remove", "deny"]


@pytest.fixture(scope="module")
def movies():
    """Items, and a sample of train histories and targets, of the small MovieLens."""
    entry = DatasetEntry.model_validate(read_yaml(ROOT / "config/datasets.yaml")["ml-100k-small"])
    done = protocols.prepare(readers.read(entry, "ml-100k-small"), entry, "ml-100k-small")
    train = done.sessions.filter(pl.col("split") == "train").gather_every(20)
    texts = [history_text(shown, done.items["text"].to_list(), 4) for shown in train["history"].to_list()]
    return done.items, texts, train["target"].to_numpy()


def sentence_of(text: str) -> tuple[str, str]:
    """Kind and taste of the sentence at the beginning of an edited text."""
    for kind, sentences in SENTENCES.items():
        for sentence in sentences:
            before, after = (re.escape(part) for part in sentence.split("{}"))
            if match := re.match(f"{before}([^ ]+){after} ", text):
                return kind, match[1]
    raise AssertionError(text)


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_edits_are_true_of_the_target_on_real_data(movies, prefix):
    """Read from the texts and the catalogue's own field, not from the matrix that the edits use."""
    items, texts, targets = movies
    genres = [set(value.split(", ")) for value in items["genres"].to_list()]
    titles = Titles(items["title"].to_list())
    edits = Edits([prefix + text for text in texts], targets, tastes_of(items, "genres"), titles, ALL, prefix)
    admitted, seen = edits.admitted(), dict.fromkeys(ALL, 0)
    assert len(admitted) == len(texts) > 200
    for row in admitted.tolist():
        plain, own = texts[row], genres[targets[row]]
        edited = edits.text(row, stream(0, "contrastive-1", "edits", row))
        assert edited.startswith(prefix)
        edited = edited.removeprefix(prefix)
        if edited.endswith(plain):
            kind, taste = sentence_of(edited)
            named = bool(pattern(taste).search(titles.mask(plain)[0]))
            assert (taste in own) == (kind != "deny"), (edited, own)
            assert kind == "deny" or named == (kind == "strengthen"), (edited, plain)
        else:
            kind = "remove"
            before, after = (titles.mask(text) for text in (plain, edited))
            gone = {name for name in {*", ".join(items["genres"]).split(", ")} if pattern(name).search(before[0])}
            gone = {name for name in gone if not pattern(name).search(after[0])}
            assert len(gone) == 1 and not gone & own, (edited, plain)
            assert [title for title, _ in before[1]] == [title for title, _ in after[1]], "titles stay"
            assert ":," not in edited and ", ," not in edited
        seen[kind] += 1
    assert all(count > 20 for count in seen.values()), seen


@pytest.mark.parametrize("kind", SENTENCES)
def test_the_sentences_mean_what_they_should_and_are_not_those_of_the_measure(kind):
    names = ["Children's", "Film-Noir", "Horror", "Sci-Fi", "War"]
    tastes = Tastes(names, np.zeros((0, 5), dtype=bool))
    assert len(set(SENTENCES[kind])) == 8
    measured = {edit.text.split(".")[0] for edit in steering.edits("Horror.", tastes, Titles([]), 5, 0, 0)}
    for sentence in SENTENCES[kind]:
        for name in names:
            claims = extract(f"{sentence.format(name)} Comedies.", tastes, Titles([]))
            assert [(c.value, c.liked) for c in claims if c.kind == "genre"] == [(name, kind != "deny")], sentence
            assert sentence.format(name).rstrip(".") not in measured


def test_rows_that_admit_no_edit_are_left_out():
    """The first item has taste a, the second none, the third both."""
    tastes = Tastes(["alpha", "beta"], np.array([[True, False], [False, False], [True, True]]))
    texts, targets = ["alpha, beta", "beta", "nothing", "alpha"], np.array([0, 1, 1, 2])

    def admitted(*kinds):
        return Edits(texts, targets, tastes, Titles([]), kinds).admitted().tolist()

    assert admitted("add", "strengthen", "remove") == [0, 3]
    assert admitted("deny") == [0, 1, 2] and admitted(*ALL) == [0, 1, 2, 3]
    assert admitted("remove") == [0, 1] and admitted("strengthen") == [0, 3] and admitted("add") == [3]
    pairs = Pairs(texts, targets, ["x"] * 3, (Kind("histories", 2, 0.6), Kind("profiles", 2, 0.4)))
    found = with_edits(pairs, Edits(texts, targets, tastes, Titles([]), ["remove"]), 0.5)
    assert found.kinds == (Kind("histories", 2, 0.3), Kind("profiles", 2, 0.4), Kind("edited histories", 2, 0.3))
    assert found.edited.tolist() == [0, 1] and found.targets.tolist() == [0, 1, 1, 2, 0, 1]
    with pytest.raises(UserError, match="no text admits one of these edits"):
        nothing = Tastes(["gamma"], np.zeros((3, 1), dtype=bool))
        with_edits(pairs, Edits(texts, targets, nothing, Titles([]), ["add", "strengthen"]), 0.5)


@pytest.mark.parametrize("mixed", [False, True])
def test_edited_rows_have_their_share_of_every_batch_and_of_the_correction(mixed):
    """The rate at which the rows really put items among the candidates is the correction's."""
    data = p.planted(train=60, val=4)
    targets, batch, batches = np.array(data.target["train"]), 20, 3000
    tastes = p.tastes(data)
    tastes.has[:32] = False  # the rows of two tastes admit no edit
    kinds = (Kind("histories", 45, 0.6), Kind("profiles", 15, 0.4)) if mixed else (Kind("histories", 60, 1.0),)
    plain = Pairs(["war western"] * 60, targets, data.items, kinds)
    pairs = with_edits(plain, Edits(plain.texts, targets, tastes, Titles([]), ["add", "strengthen"]), 0.3)
    assert 0 < len(pairs.edited) < 60 and set(pairs.edited) == set(np.flatnonzero(targets >= 32))
    order = contrastive.mixed_order(pairs.kinds, batches * batch, 0, "contrastive-1")
    edited = pairs.is_edited(order).reshape(-1, batch).sum(axis=1)
    assert np.abs(edited - 6).max() <= mixed and edited.mean() == pytest.approx(6, abs=0.01)
    if mixed:
        source = np.concatenate([np.arange(60), pairs.edited])[order]
        histories = (source < 45).reshape(-1, batch).sum(axis=1)
        assert histories.mean() == pytest.approx(12, abs=0.01) and np.abs(histories - 12).max() <= 2
    for first, kind in zip(np.cumsum([0, *(kind.rows for kind in pairs.kinds)]), pairs.kinds, strict=False):
        assert np.ptp(np.bincount(order, minlength=len(pairs.targets))[first : first + kind.rows]) <= 1, kind
    drawn = np.bincount(pairs.targets[order], minlength=len(data.items)) / batches
    weights = contrastive.row_weights(pairs.kinds)
    assert weights.mean() == pytest.approx(1)
    expected = np.exp(contrastive.log_frequency(pairs.targets, len(data.items), batch, 0, weights))
    assert np.allclose(expected[drawn > 0], drawn[drawn > 0], rtol=5e-3)


def edited(folder, **changes):
    return p.decoder_trainer(folder, p.contrastive(edited_share=0.5, edits=ALL, anchor=0.5, batches=12, **changes))


def test_an_edit_depends_on_its_place_only(tmp_path):
    trainer, again = (edited(tmp_path / name) for name in "ab")
    places = range(len(trainer.order))
    texts = [trainer.text(place) for place in places]
    assert [again.text(place) for place in reversed(places)] == texts[::-1]
    rows = trainer.order.tolist()
    made = {}
    for row, text in zip(rows, texts, strict=True):
        made.setdefault(row, []).append(text)
    changing = [len(set(found)) > 1 for row, found in made.items() if trainer._pairs.is_edited(row)]
    assert np.mean(changing) > 0.8, "another edit each time"
    assert all(len(set(found)) == 1 for row, found in made.items() if not trainer._pairs.is_edited(row))


def test_another_phase_and_another_seed_have_other_edits(tmp_path):
    recipe = p.contrastive(edited_share=0.5)

    def texts(**which):
        trainer = p.decoder_trainer(tmp_path, recipe, **which)
        base = [trainer.order[place] for place in range(64)]
        own = trainer._pairs
        return [own.edits.text(3, stream(trainer._seed, trainer._phase, "edits", place)) for place in range(64)], base

    first, second, third = texts(), texts(phase="contrastive-2"), texts(seed=1)
    assert first == texts() and first[0] != second[0] != third[0] != first[0]


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("micro", [64, 5])
def test_the_gradient_of_the_anchor_is_that_of_the_formula(tmp_path, share, micro):
    """Against one forward pass over all texts, at weights that are no longer those of the start."""
    trainer = p.decoder_trainer(tmp_path, p.contrastive(edited_share=share, anchor=0.7, micro_batch=micro))
    start, model, pairs = p.tiny_decoder(), trainer.model, trainer._pairs
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    places = np.arange(16)
    loss, distance = trainer._backward(model, places)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()

    rows = trainer.order[places]
    ids = torch.tensor(np.concatenate([pairs.targets[rows], trainer._uniform()]))
    texts = [trainer.text(place) for place in places.tolist()]
    queries = unit_vectors(model, texts)
    items = unit_vectors(model, [pairs.item_texts[item] for item in ids.tolist()])
    with torch.no_grad():
        before = unit_vectors(start, texts)
    counted = [at for at in range(16) if not share or pairs.is_edited(rows[at])]
    assert len(counted) == (8 if share else 16)
    own = torch.stack([1 - queries[at] @ before[at] for at in counted]).mean()
    expected = 0.7 * own + contrastive.info_nce(
        queries, items, ids, torch.arange(16), trainer._recipe.temperature, trainer._log_q[ids], True
    )
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(distance) == pytest.approx(float(own.detach()), rel=1e-4) and float(distance) > 0.01
    assert found
    for name, weight in model.named_parameters():
        if name in found:
            assert torch.allclose(weight.grad, found[name], rtol=1e-3, atol=1e-6), name


def test_an_anchor_of_no_weight_changes_no_bit_and_a_heavy_one_holds(tmp_path):
    """So small a weight vanishes in float32: whatever an anchor computes besides changes nothing."""
    trained = {}
    for anchor in (0.0, 1e-30, 50.0):
        trained[anchor] = p.decoder_trainer(tmp_path / str(anchor), p.contrastive(anchor=anchor, batches=6))
        trained[anchor].run()
    plain, light = (p.weights(trained[anchor].model) for anchor in (0.0, 1e-30))
    assert all(torch.equal(light[name], value) for name, value in plain.items())
    curves = {anchor: trainer.watch.state["curve"] for anchor, trainer in trained.items()}
    assert [row["loss"] for row in curves[0.0][1:]] == [row["loss"] for row in curves[1e-30][1:]]
    assert "distance" not in curves[0.0][1]
    first, last = ([row["distance"] for row in curves[anchor][1:]] for anchor in (1e-30, 50.0))
    assert abs(first[0]) < 1e-6, "the first batch is at the start"
    assert last[-1] < first[-1] / 2


@pytest.mark.parametrize("texts", ["history", "mixed"])
def test_the_script_trains_on_edited_rows(tmp_path, texts):
    data = write_files(tmp_path / "data")
    chosen = contracts.read(data / "training.parquet", "evaluation")
    for split in ("train", "val"):
        ids = chosen.filter(pl.col("split") == split)["session"].to_list()
        profiles(ids, {at: ["likes western"] for at in ids}, data / f"{split}.parquet")
    settings = spec(data, tmp_path, texts, edited_share=0.25, anchor=0.1)
    notes = work("train_decoder", settings).notes
    plain = {"history": 40, "profiles": 40} if texts == "mixed" else {"history": 40}
    tags = tastes_of(contracts.read(data / "items.parquet", "items"), None)
    assert tags.names == sorted(set(p.TASTES) - {"war"}), "mined"
    targets = contracts.read(data / "sessions.parquet", "sessions").filter(pl.col("split") == "train")["target"]
    admitted = int(tags.has.any(axis=1)[targets.to_numpy()].sum())
    assert notes["rows"] == {**plain, "edited": admitted * len(plain)} and 20 < admitted < 40


def test_a_dataset_without_tastes_is_refused_before_training(tmp_path):
    data = write_files(tmp_path / "data")
    items = contracts.read(data / "items.parquet", "items")
    contracts.write(items.with_columns(text=pl.lit("n1")), tmp_path / "items.parquet", "items")
    settings = spec_of("cl", data, tmp_path, edited_share=0.5) | {"items_in": str(tmp_path / "items.parquet")}
    with pytest.raises(UserError, match=r"items\.parquet: field 'text': no tag can be mined .* edited_share to 0"):
        work("train_decoder", settings)
    assert not (tmp_path / "curve.jsonl").exists()


def test_phases_of_recipes_without_edits_keep_their_names():
    def name(**changes):
        recipe = p.contrastive(texts="history", **changes).resolved(5, text_method=False)
        return Phase("p", 5, 9, chain=(("cl", recipe),)).id

    assert name() == name(edited_share=0.0, edits=["deny"], anchor=0.0)
    assert len({name(), name(edited_share=0.1), name(anchor=0.1), name(edited_share=0.1, edits=["deny"])}) == 4
    assert name(edited_share=0.1, edits=["remove", "add"]) == name(edited_share=0.1, edits=["add", "remove"])
    for wrong, message in (({"edits": []}, "at least 1"), ({"edits": ["add", "add"]}, "once"), ({"anchor": -1}, "0")):
        with pytest.raises(ValueError, match=message):
            p.contrastive(**wrong)
