"""The probe finds rows that a tiny model was trained on, and finds nothing in a model trained on other rows."""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from langptune import memorisation
from langptune.data import contracts
from langptune.errors import UserError
from langptune.workflow import targets
from langptune.workflow.load import load
from tests.conftest import ROOT, sessions_table

ITEMS, USERS, SHOWN = 30, 24, 3


def catalogue(seed: int) -> pl.DataFrame:
    """The same ids, titles and genres for every seed, in another assignment."""
    rng = np.random.default_rng(seed)
    titles, genres = rng.permutation(ITEMS), rng.permutation(ITEMS)
    rows = [(at, f"i{at}", f"Film {titles[at]}", "", None, f"genre {genres[at]}", "") for at in range(ITEMS)]
    return pl.DataFrame(rows, schema={**contracts.ITEMS, "genres": pl.String, "year": pl.String}, orient="row")


def sessions(seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    seen = [rng.permutation(ITEMS)[: SHOWN + 1].tolist() for _ in range(USERS)]
    return sessions_table([(f"u{user}", "test", items[:-1], items[-1], 0) for user, items in enumerate(seen)])


def asked(seed: int) -> list[memorisation.Question]:
    return memorisation.questions(catalogue(seed), sessions(seed), 20, SHOWN, seed=0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each cell, tab and line break."""
    cells = [*(f"i{n}" for n in range(ITEMS)), *(f"u{n}" for n in range(USERS)), "1", "\t", "\n"]
    cells += [f"{word} {n}" for word in ("Film", "genre") for n in range(ITEMS)]
    words = Tokenizer(models.WordLevel({cell: at for at, cell in enumerate(["<unk>", *cells])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\t\n]+|\t|\n"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


@cache
def trained_on(seed: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model that has memorised the rows of this seed."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, **shape))
    texts = [f"{one.prompt}{one.answer}" for one in asked(seed)]
    ids = [torch.tensor(tokenizer(text).input_ids) for text in texts]
    # Each answer is one token and its end, all there is to learn: the beginnings are the same for all rows, or random.
    batches = [torch.stack([row for row in ids if len(row) == length]) for length in {len(row) for row in ids}]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(80):
        for batch in batches:
            logits = model(input_ids=batch[:, :-1], logits_to_keep=2).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, -2:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def test_planted_memory_is_found_and_none_in_a_control(tokenizer, one_thread):
    questions = asked(0)
    found = {
        "knows": memorisation.answers(trained_on(0, tokenizer), tokenizer, questions),
        "knows others": memorisation.answers(trained_on(1, tokenizer), tokenizer, questions),
    }
    table = memorisation.table(found, 500, 0.95, 0)
    knows, others = (table.filter(pl.col("encoder") == name) for name in found)
    assert knows["n"].to_list() == others["n"].to_list() == [20, 20, USERS]
    assert (knows["exact"] > 0.9).all() and (knows["low"] > 1).all() and (knows["p"] < 0.01).all()
    assert (others["exact"] < 0.2).all() and (others["low"] < 0.5).all() and (others["p"] > 0.05).all()
    assert (table["control_exact"] < 0.2).all()
    page = memorisation.page("Toy", table, pl.DataFrame(schema=memorisation.GAINS), 0.95, SHOWN)
    assert "| knows | title of an item id | 20 |" in page and "Do users gain" not in page


def test_questions_show_rows_as_they_are_and_have_the_beginning_of_another():
    questions = asked(0)
    items = {row["item_id"]: row for row in catalogue(0).to_dicts()}
    for kind in memorisation.KINDS:
        part = [one for one in questions if one.kind == kind]
        assert sorted(one.prompt for one in part) == sorted(one.other_prompt for one in part)
        assert all(one.prompt != one.other_prompt for one in part)
    for one in questions:
        lines = one.prompt.split("\n")
        if one.kind == "next":
            session = sessions(0).row(one.unit, named=True)
            shown = [f"{session['user_id']}\ti{item}\t1" for item in session["history"]]
            assert lines == [*shown, f"{session['user_id']}\t"] and one.answer == f"i{session['target']}\t"
            continue
        examples, last = lines[:-1], lines[-1].split("\t")
        assert len(examples) == memorisation.EXAMPLES and not any(
            one.answer.strip() in row.split("\t") for row in examples
        )
        row = items[last[0]]
        assert one.answer == (f"{row['title']}\t" if one.kind == "title" else f"{row['genres']}\n")


def test_a_title_has_its_year_and_empty_fields_are_not_asked_for():
    frame = catalogue(0).with_columns(year=pl.lit("1999"), genres=pl.lit(""))
    assert memorisation.item_rows(frame)[0] == ("i0", f"{frame['title'][0]} (1999)", "")
    found = memorisation.questions(frame, sessions(0), 20, SHOWN, 0)
    assert {one.kind for one in found} == {"title", "next"}
    assert all(one.answer.endswith("(1999)\n") for one in found if one.kind == "title"), "the title ends the row"
    assert memorisation.questions(frame[:6], sessions(0)[:0], 20, SHOWN, 0) == [], "one row has no other"


def test_a_longer_id_that_begins_alike_is_another_answer(one_thread):
    """A tokenizer of characters, and a model that has learned to answer i12."""
    letters = Tokenizer(models.WordLevel({one: at for at, one in enumerate(["<unk>", *"ui127\t"])}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, **shape))
    row = torch.tensor([tokenizer("u1\ti12\t").input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=row, labels=row).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    asked = [memorisation.Question("next", at, "u1\t", f"{i}\t", "u1\t") for at, i in enumerate(("i12", "i1", "i127"))]
    assert memorisation.answers(model.eval(), tokenizer, asked)["exact"].to_list() == [True, False, False]


def test_scores_do_not_depend_on_the_batch(tokenizer, one_thread):
    model, questions = trained_on(1, tokenizer), asked(0)[::7]
    one, many = (memorisation.answers(model, tokenizer, questions, size) for size in (1, 16))
    for name in ("nats", "control_nats"):
        np.testing.assert_allclose(one[name].to_numpy(), many[name].to_numpy(), atol=1e-4)
    ids = tokenizer(questions[0].prompt).input_ids
    target = tokenizer(questions[0].answer).input_ids
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1]
    expected = logits.log_softmax(-1)[range(len(target)), target].mean().item()
    assert one["nats"][0] == pytest.approx(expected, abs=1e-5)


def test_correlation_with_gains_is_spearmans():
    rng = np.random.default_rng(0)
    memory, gain = rng.normal(size=40), rng.normal(size=40)
    gain += memory
    fixed = {"kind": "next", "control_nats": 0.0, "exact": False, "control_exact": False}
    answers = pl.DataFrame({**fixed, "unit": range(40), "nats": memory}, schema=memorisation.SCHEMA)
    sessions = pl.Series(range(40), dtype=pl.Int32)
    frames = [
        pl.DataFrame({"session": sessions, "method": method, "models": models, "rank_gain": values})
        for method, models, values in (
            *(("langptune", "e+d", gain), ("other", "f+d", gain)),
            *(("reference", "e+d", np.zeros(40)), ("pop", "pop", gain)),
        )
    ]
    (row,) = memorisation.against_gains({"e": answers}, pl.concat(frames), 400, 0.95, 0).to_dicts()
    assert (row["method"], row["n"]) == ("langptune", 40)
    assert row["spearman"] == pytest.approx(spearmanr(memory, gain).statistic)
    assert 0 < row["low"] < row["spearman"] < row["high"] < 1


def test_answers_that_are_all_alike_have_no_correlation():
    fixed = {"kind": "next", "nats": -1.0, "control_nats": -1.0, "exact": False, "control_exact": False}
    answers = pl.DataFrame({**fixed, "unit": range(5)}, schema=memorisation.SCHEMA)
    sessions = pl.Series(range(5), dtype=pl.Int32)
    gains = pl.DataFrame({"session": sessions, "method": "m", "models": "e+d", "rank_gain": np.arange(5.0)})
    assert memorisation.against_gains({"e": answers}, gains, 10, 0.975, 0).is_empty()
    page = memorisation.page("T", pl.DataFrame(schema=memorisation.TABLE), pl.DataFrame(), 0.975, 3)
    assert "[97.5% interval]" in page


def test_a_run_without_local_encoders_is_one_line():
    project = load({"datasets": ["ml-100k"], "methods": ["pop", "ease"]}, ROOT)
    with pytest.raises(UserError, match="no encoder with local weights"):
        targets.memorisation(project)
