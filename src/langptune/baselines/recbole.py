"""Any ID-based or sequential RecBole model, trained on our train sessions and ranked by our rank function.

RecBole is handed the training interactions and the list of users and items, nothing else. Validation and
test sessions reach a model only as questions at prediction time, so a target cannot leak into training,
sampling or id tables. Epochs are chosen by NDCG@10 of ``full_ranks`` on our validation sessions, masked by
``seen``, and never by RecBole's evaluator (which leaves a sequential model's history unmasked).

ID-based models know users by number: their training interactions are all (user, item) pairs of the train
sessions. Sequential models see one row per train session. BERT4Rec, which predicts masked items inside a
list, sees history and target as one list.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from langptune import metrics
from langptune.baselines import recbole_compat
from langptune.baselines.recbole_catalogue import check, defaults, models
from langptune.errors import UserError
from langptune.ranking.decoder import rank_sessions
from langptune.ranking.ranks import TOP

if TYPE_CHECKING:
    import torch

COLUMNS = ["session", "user_id", "split", "history", "seen", "target", "target_time"]
"""The columns of ``sessions`` that training and ranking read."""

_SCORES = 1 << 24
"""How many scores are held at once (64 MiB)."""


@dataclass(frozen=True)
class Training:
    """What to train and for how long: the fields of ``RecBoleMethod`` that shape the model, and the seed.

    device: ``auto`` takes a GPU where there is one; ``cpu`` never does.
    """

    model: str
    settings: dict[str, Any]
    epochs: int = 100
    patience: int = 10
    validate_every: int = 1
    history_items: int = 50
    train_sessions: int | None = None
    refit: bool = True
    seed: int = 0
    device: str = "auto"


@dataclass
class Selected:
    """A model at its best validated epoch.

    best_epoch: 1-based; 0 for a closed-form model.
    val: metric name -> mean over validation sessions, at the best epoch.
    curve: one row per epoch: ``epoch``, ``loss`` (mean over batches), ``val_ndcg@10`` (null where the epoch
        was not validated), ``seconds``.
    """

    fitted: Fitted
    best_epoch: int
    epochs_run: int
    val: dict[str, float]
    curve: list[dict[str, Any]]


def select(training: Training, n_items: int, sessions: pl.DataFrame, log: Callable[[str], None]) -> Selected:
    """Train on the train sessions and keep the epoch with the best validation NDCG@10.

    With ``refit``, an ID-based model is also given what the validation sessions show (``history`` and
    ``seen``, never a target), as it will be given what the test sessions show; in leave-one-out that adds
    nothing, under user-disjoint protocols it is all that the model knows of a validation user.

    Args:
        n_items: size of the catalogue.
        sessions: the contract's sessions, at least ``COLUMNS``.
        log: takes one line per epoch.

    Raises:
        UserError: see ``check``; no train or validation sessions; a loss or score that is not a number.
    """
    check(training.model, training.settings)
    val = sessions.filter(pl.col("split") == "val")
    if val.is_empty():
        raise UserError(f"{training.model}: the sessions have no validation split to choose an epoch on")
    job = _Job(training, n_items, sessions, "val" if training.refit else None)
    return _train(job, val, training, log)


def final(
    training: Training, n_items: int, sessions: pl.DataFrame, log: Callable[[str], None]
) -> tuple[Fitted, Selected]:
    """The model that ranks the test sessions, and the selection it came from.

    A sequential model, or an ID-based one without ``refit``, is the selected model itself. With ``refit``, an
    ID-based model is trained from scratch with the same seed, for as many epochs as were best, on the train
    interactions plus what the test sessions show (``history`` and ``seen``): what every history-based method
    sees. No test target is ever among them.
    """
    selected = select(training, n_items, sessions, log)
    if not training.refit or not selected.fitted.job.general:
        return selected.fitted, selected
    job = _Job(training, n_items, sessions, "test")
    for epoch in range(1, selected.best_epoch + 1):
        start = time.perf_counter()
        loss = job.epoch(epoch)
        log(
            f"{training.model} refit epoch {epoch}/{selected.best_epoch} loss {loss:.4f} "
            f"{time.perf_counter() - start:.1f} s"
        )
    return Fitted(job), selected


class Fitted:
    """A trained model that scores sessions in our item order."""

    def __init__(self, job: _Job):
        self.job = job

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Scores of the whole catalogue.

        Args:
            sessions: ``[S]`` rows with ``user_id`` and ``history`` (most recent last).

        Returns:
            float32 ``[S, n_items]``, higher is better. A user of whom an ID-based model has seen no
            interaction gets equal scores, which ``full_ranks`` puts in the middle of the catalogue.
        """
        return self.job.scores(sessions)

    def ranks(self, sessions: pl.DataFrame, top: int = TOP) -> pl.DataFrame:
        """Contract ``ranks`` of the sessions, by the function that ranks every method, in blocks that bound memory."""
        step = max(1, _SCORES // self.job.n_items)
        blocks = (self.scores(sessions.slice(start, step)) for start in range(0, len(sessions), step))
        return rank_sessions(sessions, blocks, top)


def _train(job: _Job, val: pl.DataFrame, training: Training, log: Callable[[str], None]) -> Selected:
    """Early stopping on validation NDCG@10; a closed-form model is validated once."""
    name, fitted = training.model, Fitted(job)
    if job.closed_form:
        start = time.perf_counter()
        measured = _measure(fitted, val, name, 0)
        seconds = time.perf_counter() - start + job.build_seconds
        log(f"{name} closed form, val NDCG@10 {measured['ndcg@10']:.4f}, {seconds:.1f} s")
        row = {"epoch": 0, "loss": None, "val_ndcg@10": measured["ndcg@10"], "seconds": round(seconds, 3)}
        return Selected(fitted, 0, 0, measured, [row])

    curve: list[dict[str, Any]] = []
    best: dict[str, float] = {"ndcg@10": -1.0}
    best_epoch, state, stale = 0, None, 0
    begun = time.perf_counter()
    for epoch in range(1, training.epochs + 1):
        start = time.perf_counter()
        loss = job.epoch(epoch)
        row = {"epoch": epoch, "loss": loss, "val_ndcg@10": None}
        told = ""
        if epoch % training.validate_every == 0 or epoch == training.epochs:
            measured = _measure(fitted, val, name, epoch)
            row["val_ndcg@10"] = measured["ndcg@10"]
            stale += 1
            if measured["ndcg@10"] > best["ndcg@10"]:
                best, best_epoch, state, stale = measured, epoch, job.state(), 0
            told = f" val NDCG@10 {measured['ndcg@10']:.4f} best {best['ndcg@10']:.4f} (epoch {best_epoch})"
        now = time.perf_counter()
        row["seconds"] = round(now - start, 3)
        curve.append(row)
        left = (training.epochs - epoch) * (now - begun) / epoch
        log(f"{name} epoch {epoch}/{training.epochs} loss {loss:.4f}{told} {now - start:.1f} s, <= {left:.0f} s left")
        if stale >= training.patience:
            break
    job.restore(state)
    return Selected(fitted, best_epoch, len(curve), best, curve)


def _measure(fitted: Fitted, val: pl.DataFrame, name: str, epoch: int) -> dict[str, float]:
    try:
        ranks = fitted.ranks(val, top=0)["rank"].to_numpy()
    except UserError as error:
        raise UserError(f"{name}, epoch {epoch}: {error}") from None
    return {key: float(metrics.from_ranks(key, ranks).mean()) for key in ("ndcg@10", "recall@10")}


class _Job:
    """One RecBole model with its data and trainer.

    Args:
        shows: the split whose sessions' ``history`` and ``seen`` join an ID-based model's interactions.
    """

    def __init__(self, training: Training, n_items: int, sessions: pl.DataFrame, shows: str | None):
        start = time.perf_counter()
        recbole_compat.apply()
        from recbole.utils import ModelType, get_trainer, init_seed

        self.name, self.n_items = training.model, n_items
        model_class = recbole_compat.model_class(training.model)
        self.general = models()[training.model] == "general_recommender"
        self.masked_lists = training.model == "BERT4Rec"
        users = sessions["user_id"].unique(maintain_order=True)
        self.users = dict(zip(users.to_list(), range(len(users)), strict=True))

        rows = self._pairs(sessions, shows) if self.general else self._lists(sessions, training)
        if rows.is_empty():
            raise UserError(f"{training.model}: there is nothing to train on; the sessions have no train split")
        if self.general:
            self.width = 0
            self.trained_users = set(rows["user_id"].unique().to_list())
        else:
            # Positions that no training row reaches stay untrained, so lists are never longer than those.
            self.width = int(rows["item_id_list"].list.len().max())

        with tempfile.TemporaryDirectory(prefix="recbole-") as folder:
            self._write(Path(folder) / "langptune", rows)
            config = self._config(training, folder)
            init_seed(training.seed, reproducibility=True)
            self._build(config)
            self.model = model_class(config, self.data.dataset).to(config["device"])
            self.trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, self.model)
        trainable = any(p.requires_grad for p in self.model.parameters())
        self.closed_form = config["MODEL_TYPE"] == ModelType.TRADITIONAL or not trainable
        if config["train_neg_sample_args"].get("dynamic", False):
            self.data.get_model(self.model)
        self.build_seconds = time.perf_counter() - start

    def _pairs(self, sessions: pl.DataFrame, shows: str | None) -> pl.DataFrame:
        """Distinct (user, item) of the train sessions, and of what the sessions of ``shows`` show."""

        def pairs(split: str, *columns: str) -> pl.DataFrame:
            part = sessions.filter(pl.col("split") == split)
            found = [part.select("user_id", item=column).explode("item") for column in columns]
            return pl.concat(found).drop_nulls()

        known = pl.concat(
            [
                pairs("train", "history"),
                sessions.filter(pl.col("split") == "train").select("user_id", item="target"),
            ]
        )
        if shows is not None:
            later = ["val", "test"] if shows == "val" else ["test"]
            # A user may have several sessions in a split; what one shows may be what another asks for.
            asked = sessions.filter(pl.col("split").is_in(later)).select("user_id", item="target")
            shown = pairs(shows, "history", "seen").join(asked, on=["user_id", "item"], how="anti")
            known = pl.concat([known, shown])
        rows = known.unique(maintain_order=True)
        return rows.select(self._user_numbers(rows), item_id=pl.col("item"))

    def _lists(self, sessions: pl.DataFrame, training: Training) -> pl.DataFrame:
        """One row per train session, the most recent ones of a user where the number is capped."""
        rows = sessions.filter(pl.col("split") == "train")
        if training.train_sessions is not None:
            order = ["user_id", "target_time", pl.col("seen").list.len(), "session"]
            rows = rows.sort(order).group_by("user_id", maintain_order=True).tail(training.train_sessions)
        recent = pl.col("history").list.tail(training.history_items)
        if self.masked_lists:
            recent = pl.concat_list(recent, pl.col("target"))
        return rows.select(self._user_numbers(rows), item_id_list=recent, item_id=pl.col("target"))

    def _user_numbers(self, rows: pl.DataFrame) -> pl.Series:
        return pl.Series("user_id", [self.users[user] for user in rows["user_id"].to_list()], dtype=pl.Int64)

    def _write(self, folder: Path, rows: pl.DataFrame) -> None:
        """RecBole's files; ``.user`` and ``.item`` make every user and item known, trained on or not."""
        folder.mkdir()
        if "item_id_list" in rows.columns:
            rows = rows.with_columns(pl.col("item_id_list").cast(pl.List(pl.String)).list.join(" "))
        names = {
            "user_id": "user_id:token",
            "item_id": "item_id:token",
            "item_id_list": "item_id_list:token_seq",
        }
        rows.rename({k: v for k, v in names.items() if k in rows.columns}).write_csv(
            folder / "langptune.train.inter", separator="\t", quote_style="never"
        )
        for kind, count in (("user", len(self.users)), ("item", self.n_items)):
            pl.DataFrame({f"{kind}_id:token": range(count)}).write_csv(folder / f"langptune.{kind}")

    def _config(self, training: Training, folder: str) -> Any:
        from recbole.config import Config

        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        settings: dict[str, Any] = {
            **training.settings,
            "seed": training.seed,
            "epochs": training.epochs,
            "data_path": folder,
            "checkpoint_dir": folder,
            "benchmark_filename": ["train"],
            "load_col": None,
            "show_progress": False,
            # RecBole overwrites CUDA_VISIBLE_DEVICES with gpu_id, which a scheduler may have set
            "gpu_id": "" if training.device == "cpu" else visible,
        }
        if not self.general:
            settings["alias_of_item_id"] = ["item_id_list"]
            settings["MAX_ITEM_LIST_LENGTH"] = self.width
            loss = training.settings.get("loss_type", defaults(training.model).get("loss_type"))
            if loss == "CE":
                settings["train_neg_sample_args"] = None
        try:
            return Config(model=training.model, dataset="langptune", config_dict=settings)
        except (ValueError, TypeError, KeyError, NotImplementedError) as error:
            raise UserError(f"RecBole refuses the settings of {training.model}: {error}") from None

    def _build(self, config: Any) -> None:
        from recbole.data import create_dataset
        from recbole.data.utils import get_dataloader
        from recbole.sampler import RepeatableSampler, Sampler

        dataset = create_dataset(config)
        (train,) = dataset.build()
        negatives = config["train_neg_sample_args"]
        sampler = None
        if negatives["distribution"] != "none":
            kind = Sampler if self.general else RepeatableSampler
            sampler = kind(["train"], [train] if self.general else train, negatives["distribution"], negatives["alpha"])
            sampler = sampler.set_phase("train")
        self.data = get_dataloader(config, "train")(config, train, sampler, shuffle=True)
        self.dataset, self.config, self.device = dataset, config, config["device"]
        # position of our item i (or user u) in RecBole's tables, where 0 is padding
        self.item_at = self._positions("item_id", self.n_items)
        self.user_at = self._positions("user_id", len(self.users))

    def _positions(self, field: str, count: int) -> torch.Tensor:
        import torch

        ours = self.dataset.id2token(field, np.arange(1, self.dataset.num(field))).astype(np.int64)
        if len(ours) != count:
            raise UserError(f"{self.name}: RecBole knows {len(ours)} of {count} values of {field}")
        at = np.empty(count, dtype=np.int64)
        at[ours] = np.arange(1, count + 1)
        return torch.from_numpy(at)

    def epoch(self, epoch: int) -> float:
        """One pass over the training rows; the mean loss of its batches."""
        try:
            loss = self.trainer._train_epoch(self.data, epoch - 1)
        except ValueError as error:
            if "nan" not in str(error).lower():
                raise
            raise UserError(
                f"{self.name}, epoch {epoch}: the training loss is not a number; lower learning_rate"
            ) from None
        return float(sum(loss) if isinstance(loss, tuple) else loss) / len(self.data)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What RecBole's checkpoint would hold of the model, as a copy in memory."""
        weights = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        return weights, copy.deepcopy(self.model.other_parameter())

    def restore(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Back to a copy that ``state`` made (caches of embeddings included)."""
        self.model.load_state_dict(state[0])
        self.model.load_other_parameter(state[1])

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """See ``Fitted.scores``."""
        import torch

        self.model.eval()
        out = np.empty((len(sessions), self.n_items), dtype=np.float32)
        step = 512
        with torch.no_grad():
            for start in range(0, len(sessions), step):
                part = sessions.slice(start, step)
                question = self._question(part).to(self.device)
                try:
                    found = self.model.full_sort_predict(question)
                except NotImplementedError:
                    found = self._by_pairs(question)
                found = found.view(len(part), -1)[:, self.item_at.to(found.device)]
                out[start : start + len(part)] = found.float().cpu().numpy()
        if self.general:
            unknown = [self.users[user] not in self.trained_users for user in sessions["user_id"].to_list()]
            out[np.asarray(unknown, dtype=bool)] = 0.0
        return out

    def _question(self, sessions: pl.DataFrame) -> Any:
        """RecBole's form of "what comes next": user and, for a sequential model, the most recent items."""
        import torch
        from recbole.data.interaction import Interaction

        users = self.user_at[torch.tensor([self.users[user] for user in sessions["user_id"].to_list()])]
        if self.general:
            return Interaction({"user_id": users})
        # BERT4Rec appends its mask token and then drops the first position, so that position holds padding.
        lead = 1 if self.masked_lists else 0
        items = torch.zeros((len(sessions), self.width), dtype=torch.long)
        lengths = torch.zeros(len(sessions), dtype=torch.long)
        for row, history in enumerate(sessions["history"].to_list()):
            recent = self.item_at[torch.tensor(history[-(self.width - lead) :])]
            lengths[row] = lead + len(recent)
            items[row, lead : lead + len(recent)] = recent
        question = Interaction({"user_id": users, "item_id_list": items, "item_length": lengths})
        return question if self.masked_lists else self.data.transform(self.dataset, question)

    def _by_pairs(self, question: Any) -> torch.Tensor:
        """Scores of models that only know ``predict`` on (user, item) pairs, ``[S, n_items + 1]``."""
        import torch
        from recbole.data.interaction import Interaction

        every = torch.arange(self.n_items + 1, device=self.device)
        step = max(1, (1 << 18) // len(every))
        found = []
        for start in range(0, len(question), step):
            part = question[start : start + step]
            pairs = part.repeat_interleave(len(every))
            pairs.update(Interaction({"item_id": every.repeat(len(part))}))
            found.append(self.model.predict(pairs).view(len(part), -1))
        return torch.cat(found)
