"""The explorer's re-rank of an edited profile: the round trip over HTTP, and its ranking against an alternative.

    python benchmarks/explorer.py [--requests 100] [--items 1700 10000]

A server is started in this process on a catalogue of synthetic unit vectors of the real decoder's dimension; every
request sends a text that was not seen before, so that nothing is answered from memory. Of each text is timed:

* ``http``: POST /api/rank as the page sends it, answer read to its end: embedding with the real decoder, the orders of
  the old and the new text, the target's rank, movement of every title, word differences, JSON;
* ``embed``: the decoder alone;
* ``ours``: ranking alone, from the vector to the full order and the target's rank (``full_ranks``);
* ``semantic_search``: the same from sentence-transformers' ``util.semantic_search`` with ``top_k`` of the whole
  catalogue (``torch.topk``, sorted in Python), seen items taken out and the target looked up in a loop.

Both orders must agree. Prints milliseconds and writes benchmarks/out/explorer.json. Needs `make prefetch`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import polars as pl
import torch
from sentence_transformers import util

from langptune.config.load import load
from langptune.data import contracts
from langptune.explorer.access import server
from langptune.explorer.finished import Finished
from langptune.explorer.live import Decoder, Live
from langptune.explorer.server import HOST, app
from langptune.explorer.views import Explorer
from langptune.provenance import ROOT, device, versions, write_json
from langptune.ranking.decoder import ItemVectors
from langptune.ranking.ranks import full_ranks

OUT = Path(__file__).parent / "out" / "explorer.json"
DECODER = "minilm-l6"
TALK = """the user enjoys dark slow warm classic recent films about crime war family space love music horror and comedy
with strong characters clever plots long journeys quiet endings from eighties nineties but dislikes violence noise"""


def catalogue(root: Path, items: int, rng: np.random.Generator) -> None:
    """One finished run of a text method on made-up items and one session, as the workflow would leave it."""
    data = root / "results" / "ml-100k" / "data"
    names = [f"Title {item}" for item in range(items)]
    fields = {"item": range(items), "item_id": names, "title": names, "text": names, "first_seen": [0] * items}
    table = pl.DataFrame(fields, schema=contracts.ITEMS)
    contracts.write(
        table.with_columns(genres=pl.lit("Drama, War"), year=pl.lit("1995")), data / "items.parquet", "items"
    )
    history = list(range(50))
    session = {
        "session": [0],
        "user_id": ["1"],
        "split": ["test"],
        "history": [history],
        "ratings": [[4.0] * len(history)],
        "reviews": [None],
        "seen": [history],
        "target": [items // 2],
        "target_time": [0],
    }
    contracts.write(pl.DataFrame(session, schema=contracts.SESSIONS), data / "sessions.parquet", "sessions")
    sample = pl.DataFrame({"session": [0], "split": ["test"]}, schema=contracts.EVALUATION)
    contracts.write(sample, data / "evaluation.parquet", "evaluation")
    vectors = rng.standard_normal((items, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ItemVectors(vectors, np.arange(items)).save(data / "vectors" / f"{DECODER}.safetensors")


def alternative(query: np.ndarray, corpus: torch.Tensor, seen: list[int], target: int) -> tuple[list[int], int]:
    """The order of unseen items and the target's place in it, by ``semantic_search``."""
    hits = util.semantic_search(torch.from_numpy(query[None]), corpus, top_k=len(corpus))[0]
    masked = set(seen)
    order = [hit["corpus_id"] for hit in hits if hit["corpus_id"] not in masked]
    return order, order.index(target) + 1


def measure(items: int, requests: int, models: Path, seed: int) -> dict:
    """Milliseconds for one size of the catalogue."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        catalogue(Path(folder), items, rng)
        config = {
            "datasets": ["ml-100k"],
            "decoders": [DECODER],
            "methods": ["history"],
            "overrides": {"history": {"popularity": 0}},  # the alternative has no such term
            "models_dir": str(models),
            "registries": str(ROOT / "config"),
            "comparison": {"reference": "history"},
        }
        finished = Finished(load(config, Path(folder)), Path(folder))
        explorer = Explorer(finished, Live(finished, 2**31))
        sock = socket.create_server((HOST, 0))
        serving = server(app(explorer, None))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        (choice,) = finished.choices("ml-100k")[0]
        texts = [" ".join(rng.choice(TALK.split(), 60)) + "." for _ in range(requests + 5)]
        decoder: Decoder = explorer.live._decoder(choice)
        corpus = torch.from_numpy(decoder.vectors.vectors)
        row = finished.data("ml-100k").session(0)
        seen, target = row["seen"], row["target"]
        connection = http.client.HTTPConnection(HOST, sock.getsockname()[1], timeout=60)
        took: dict[str, list[float]] = {name: [] for name in ("http", "embed", "ours", "semantic_search")}
        for number, text in enumerate(texts):
            body = json.dumps({"dataset": "ml-100k", "run": choice.key, "session": 0, "text": text})
            clock = time.perf_counter()
            connection.request("POST", "/api/rank", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            told = json.loads(answer.read())
            marks = [time.perf_counter() - clock]
            assert answer.status == 200, told
            decoder.known.pop(text)
            clock = time.perf_counter()
            vector = decoder.vector(text)[0]
            marks.append(time.perf_counter() - clock)
            clock = time.perf_counter()
            ranked = full_ranks(decoder.scoring(0.0).scores(vector[None]), [target], [seen], top=items)
            marks.append(time.perf_counter() - clock)
            clock = time.perf_counter()
            order, place = alternative(vector, corpus, seen, target)
            marks.append(time.perf_counter() - clock)
            assert told["rank"] == ranked.rank[0]
            if abs(place - ranked.rank[0]) > 1 or order[:20] != [item["item"] for item in told["list"]]:
                raise SystemExit("the two rankings disagree")
            if number >= 5:  # the first ones warm up
                for name, mark in zip(took, marks, strict=True):
                    took[name].append(mark * 1000)
        connection.close()
        serving.should_exit = True
        thread.join()
    return {
        name: {"p50": round(float(np.percentile(v, 50)), 2), "p95": round(float(np.percentile(v, 95)), 2)}
        for name, v in took.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--items", type=int, nargs="+", default=[1700, 10_000])
    parser.add_argument("--models", type=Path, default=ROOT / "results" / "models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    told = {
        "milliseconds": {str(n): measure(n, args.requests, args.models.resolve(), args.seed) for n in args.items},
        "requests": args.requests,
        "decoder": DECODER,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "load": os.getloadavg()[0],
        "device": device(),
        "versions": versions("torch", "sentence-transformers", "numpy", "fastapi", "uvicorn"),
    }
    write_json(args.out, told)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
