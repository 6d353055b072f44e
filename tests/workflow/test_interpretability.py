"""`make interpret` on a finished run: measures, judges against a local server, table, figures, examples."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from langptune.language.claims import Titles
from langptune.language.denials import Splitter
from langptune.ranking.scoring import log_popularity
from tests.conftest import ROOT, copy_of_run, jobs_of, snakemake

pytestmark = [pytest.mark.workflow, pytest.mark.models, pytest.mark.slow]

# One seed, three methods and one judge: a few minutes less than all of config/smoke.yaml.
TOLD = (
    "interpretability={methods: [langptune-0, langptune, shuffled-profiles], sessions: 8, strangers: 3, candidates: 4, "
    "judges: [smollm2-fits], judge_sessions: 2, examples: 3}"
)
RUN = ["--configfile", "config/smoke.yaml", "--config", TOLD, "seeds=[0]"]
FOLDER = Path("results/smoke/ml-100k-small")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def repo(smoke_run, tmp_path_factory) -> Path:
    """A copy of the finished run: other tests must not see the files that are added here."""
    return copy_of_run(smoke_run, tmp_path_factory.mktemp("interpret") / "repo")


@pytest.fixture(scope="module")
def finished(repo) -> Path:
    done = snakemake(*RUN, "--", "interpretability", cwd=repo)
    assert done.returncode == 0, done.stdout[-5000:]
    return repo


def test_every_measure_is_there_for_every_method(finished):
    table = pl.read_csv(finished / FOLDER / "interpretability/table.csv")
    assert set(table["method"]) == {"langptune-0", "langptune", "shuffled-profiles"}
    for measure in ("ndcg@10", "words", "copied", "sameness", "nats_per_token", "chosen", "steer_add"):
        own = table.filter(pl.col("measure") == measure)
        assert len(own) == 3 and own["mean"].is_not_null().all(), measure
        assert (own["low"] <= own["mean"]).all() and (own["mean"] <= own["high"]).all()
    # Every session has another user's profile, but the set of texts is the same.
    words = table.filter((pl.col("measure") == "sameness") & (pl.col("method") != "langptune"))["mean"]
    assert words[0] > 0
    judges = pl.read_csv(finished / FOLDER / "interpretability/judges.csv")
    assert set(judges["method"]) == {"LangPTune", "Shuffled profiles"} and (judges["sessions"] == 2).all()
    page = (finished / FOLDER / "interpretability/table.md").read_text()
    assert "## Wording" in page and "## Truth" in page and "## Steering" in page and "## Judges" in page
    assert "## Accuracy and steerability kept" in page and "## Popularity" in page
    assert "Reading edits): LangPTune (untrained decoder 1, denials 0.5)." in page


def test_measures_are_stored_per_session_and_traced(finished):
    folder = finished / FOLDER / "langptune-0/smollm2-135m+minilm-l6/seed0/interpretability"
    measures = pl.read_parquet(folder / "measures.parquet")
    assert measures["session"].n_unique() == len(measures) == 8
    claims = pl.read_parquet(folder / "claims.parquet")
    assert claims.group_by("session").len()["len"].sum() == measures["claims"].sum()
    assert (folder / "measures.parquet.manifest.json").exists()
    simulation = pl.read_parquet(folder / "simulation.parquet")
    assert simulation["place"].is_between(1, 4).all()


def test_edits_are_measured_at_every_weight_of_popularity(finished):
    """At the run's own weight as in the table; at others the same edits, whose effect is another one."""
    folder = finished / FOLDER / "langptune/smollm2-135m+minilm-l6/seed0/interpretability"
    steering, weighed = (pl.read_parquet(folder / f"{name}.parquet") for name in ("steering", "steering_weights"))
    table = pl.read_csv(finished / FOLDER / "interpretability/steering_weights.csv").filter(method="langptune")
    chosen = table.filter(pl.col("chosen_by") == 1)["weight"].unique().to_list()
    assert len(chosen) == 1 and table["validation_ndcg@10"].is_not_null().all()
    key = ["session", "edit", "taste"]
    own = weighed.filter(pl.col("weight") == chosen[0]).select(*key, "auc_change")
    assert own.equals(steering.select(*key, "auc_change"))
    assert {len(edits) for _, edits in weighed.group_by("weight")} == {len(steering)}
    largest = weighed.filter(pl.col("weight") == pl.col("weight").max())["auc_change"].abs().mean()
    assert largest < weighed.filter(pl.col("weight") == 0)["auc_change"].abs().mean()
    assert weighed["weight"].n_unique() * steering["edit"].n_unique() <= len(table)
    frontier = pl.read_csv(finished / FOLDER / "interpretability/frontier.csv")
    own = frontier.filter(pl.col("method") == pl.col("reference"))
    assert set(own["reference"]) == {"langptune-0", "langptune"} and (own["kept"].drop_nulls() == 1).all()


def test_the_untrained_decoder_reads_edits_too(finished):
    """Steering of `langptune`, computed again with sentence-transformers, of additions and of denials."""
    from scipy.stats import rankdata
    from sentence_transformers import SentenceTransformer

    folder = finished / FOLDER / "langptune/smollm2-135m+minilm-l6/seed0"
    spec = json.loads((folder / "interpretability/steering.parquet.manifest.json").read_text())["spec"]
    assert spec["untrained_edits"] == 1 and spec["edited_denials"] == 0.5
    assert spec["decoder_in"] != spec["untrained_in"] == "results/models/minilm-l6"
    items = pl.read_parquet(finished / FOLDER / "data/items.parquet")
    sessions = pl.read_parquet(finished / FOLDER / "data/sessions.parquet")
    profiles = dict(pl.read_parquet(finished / spec["profiles_in"]).select("session", "profile").iter_rows())
    weight = json.loads((finished / spec["popularity_in"]).read_text())["weight"]
    popular = weight * log_popularity(sessions, len(items))
    models = [SentenceTransformer(str(finished / spec[name]), device="cpu") for name in ("decoder_in", "untrained_in")]
    catalogue = [model.encode(items["text"].to_list(), normalize_embeddings=True) for model in models]

    def similarities(at: int, likes: str, avoids: str = "") -> np.ndarray:
        query = models[at].encode(likes, normalize_embeddings=True) if likes else np.zeros(384, dtype=np.float32)
        if avoids:
            query = query - 0.5 * models[at].encode(avoids, normalize_embeddings=True)
        return catalogue[at] @ query / 0.05

    def auc(scores: np.ndarray, has: np.ndarray) -> float:
        places = rankdata(scores)
        return (places[has].sum() - has.sum() * (has.sum() + 1) / 2) / (has.sum() * (~has).sum())

    splitter = Splitter(Titles(items["title"].to_list()))
    edits = pl.read_parquet(folder / "interpretability/steering.parquet")
    checked = [*edits.filter(edit="add").head(6).iter_rows(named=True)]
    checked += [*edits.filter(edit="negate").head(6).iter_rows(named=True)]
    assert {row["edit"] for row in checked} == {"add", "negate"}
    for row in checked:
        original = profiles[row["session"]]
        read = splitter.parts(row["text"])
        parts = read.likes, read.avoids
        assert read.avoids == ("" if row["edit"] == "add" else row["taste"])
        seen = sessions.filter(session=row["session"])["seen"][0].to_list()
        unseen = ~np.isin(np.arange(len(items)), seen)
        has = np.array([row["taste"] in (genres or "").split(", ") for genres in items["genres"]])[unseen]
        before, after = ([similarities(at, *text) for at in (0, 1)] for text in ((original,), parts))
        edited = after[0] + after[1] - before[1]
        change = auc((edited + popular)[unseen], has) - auc((before[0] + popular)[unseen], has)
        assert row["auc_change"] == pytest.approx(change, abs=2e-3), row
        assert row["edit"] == "add" or change < 0


def test_a_second_run_has_nothing_to_do_and_a_lost_measure_is_made_again(finished):
    assert jobs_of(snakemake(*RUN, "-n", "--", "interpretability", cwd=finished).stdout) == {}
    (finished / FOLDER / "langptune/smollm2-135m+minilm-l6/seed0/interpretability/steering.parquet").unlink()
    planned = jobs_of(snakemake(*RUN, "-n", "--", "interpretability", cwd=finished).stdout)
    assert planned == {"steer": 1, "interpret": 1, "interpretability": 1}


def test_examples_escape_whatever_titles_and_profiles_say(finished):
    """Run the script of a rule on hostile titles and profiles, with the spec from its manifest."""
    page = finished / FOLDER / "interpretability/examples.html"
    assert page.read_text().count("<section>") == 3
    spec = json.loads(Path(f"{page}.manifest.json").read_text())["spec"]
    hostile = finished / "hostile"
    hostile.mkdir()
    items = pl.read_parquet(finished / spec["items_in"]).with_columns(title=pl.lit(HOSTILE))
    items.write_parquet(hostile / "items.parquet")
    spec |= {"items_in": str(hostile / "items.parquet"), "page_out": str(hostile / "page.html")}
    for column in spec["columns"]:
        measures = pl.read_parquet(finished / column["measures"]).with_columns(profile=pl.lit(HOSTILE))
        column["measures"] = str(hostile / "measures.parquet")
        measures.write_parquet(column["measures"])
    command = [sys.executable, str(ROOT / "scripts/show_examples.py"), "--spec", json.dumps(spec)]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (hostile / "page.html").read_text()
    assert HOSTILE not in page and html.escape(HOSTILE) in page


def test_a_reference_that_is_not_run_is_refused_before_any_job(finished):
    config = ["--config", "methods=[langptune,pop]", "comparison={reference: pop}"]
    done = snakemake("--configfile", "config/smoke.yaml", *config, "-n", "--", "interpretability", cwd=finished)
    assert done.returncode != 0 and "interpretability.reference: 'langptune-0' is not run here" in done.stdout
