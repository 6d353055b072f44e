"""One RecBole model with its data and trainer.

RecBole gets only the training interactions and the lists of users and items. A model gets validation and test sessions
only for prediction, so a target cannot leak into training, sampling or id tables.

ID-based models have a parameter vector per user: their training interactions are all (user, item) pairs of the train
sessions. Sequential models have one training row per train session. BERT4Rec predicts masked items inside a list, so
its rows have history and target in one list.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from langptune.baselines.engine import recbole_compat
from langptune.baselines.engine.recbole_catalogue import defaults, models
from langptune.baselines.frame.baseline import Lesson
from langptune.data.interactions import pairs
from langptune.errors import UserError

if TYPE_CHECKING:
    import torch

    from langptune.baselines.recbole import Keys


class Job:
    """One RecBole model with its data and trainer.

    With ``refit``, an ID-based model also trains on the lesson's ``shown`` items.
    """

    def __init__(self, keys: Keys, lesson: Lesson):
        start = time.perf_counter()
        recbole_compat.apply()
        from recbole.utils import ModelType, get_trainer, init_seed

        self.name, self.n_items = keys.model, lesson.n_items
        model_class = recbole_compat.model_class(keys.model)
        self.general = models()[keys.model] == "general_recommender"
        self.masked_lists = keys.model == "BERT4Rec"
        self.users = dict(zip(lesson.users, range(len(lesson.users)), strict=True))

        rows = self._pairs(lesson, keys.refit) if self.general else self._lists(lesson.train, keys)
        if rows.is_empty():
            raise UserError(f"{keys.model}: there is nothing to train on; the sessions have no train split")
        if self.general:
            self.width = 0
            self.trained_users = set(rows["user_id"].unique().to_list())
        else:
            # Positions beyond the longest training row stay untrained, so lists are never longer than it.
            self.width = int(rows["item_id_list"].list.len().max())

        with tempfile.TemporaryDirectory(prefix="recbole-") as folder:
            self._write(Path(folder) / "langptune", rows)
            config = self._config(keys, lesson, folder)
            init_seed(lesson.seed, reproducibility=True)
            self._build(config)
            self.model = model_class(config, self.data.dataset).to(config["device"])
            self.trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, self.model)
        trainable = any(p.requires_grad for p in self.model.parameters())
        self.closed_form = config["MODEL_TYPE"] == ModelType.TRADITIONAL or not trainable
        if config["train_neg_sample_args"].get("dynamic", False):
            self.data.get_model(self.model)
        self.build_seconds = time.perf_counter() - start

    def _pairs(self, lesson: Lesson, shown: bool) -> pl.DataFrame:
        """Distinct (user, item) pairs of the train sessions and, with ``shown``, of the lesson's ``shown`` items."""
        rows = pairs(lesson.train)
        if shown:
            rows = pl.concat([rows, lesson.shown]).unique(maintain_order=True)
        return rows.select(self._user_numbers(rows), item_id=pl.col("item"))

    def _lists(self, rows: pl.DataFrame, keys: Keys) -> pl.DataFrame:
        """One row per train session; with ``train_sessions``, only the most recent ones of each user."""
        if keys.train_sessions is not None:
            order = ["user_id", "target_time", pl.col("seen").list.len(), "session"]
            rows = rows.sort(order).group_by("user_id", maintain_order=True).tail(keys.train_sessions)
        recent = pl.col("history").list.tail(keys.history_items)
        if self.masked_lists:
            recent = pl.concat_list(recent, pl.col("target"))
        return rows.select(self._user_numbers(rows), item_id_list=recent, item_id=pl.col("target"))

    def _user_numbers(self, rows: pl.DataFrame) -> pl.Series:
        return pl.Series("user_id", [self.users[user] for user in rows["user_id"].to_list()], dtype=pl.Int64)

    def _write(self, folder: Path, rows: pl.DataFrame) -> None:
        """Write RecBole's files; ``.user`` and ``.item`` list all users and items, those without training rows too."""
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

    def _config(self, keys: Keys, lesson: Lesson, folder: str) -> Any:
        from recbole.config import Config

        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        settings: dict[str, Any] = {
            **keys.settings,
            "seed": lesson.seed,
            "epochs": keys.epochs,
            "data_path": folder,
            "checkpoint_dir": folder,
            "benchmark_filename": ["train"],
            "load_col": None,
            "show_progress": False,
            # RecBole overwrites CUDA_VISIBLE_DEVICES, which a scheduler may have set, with gpu_id.
            "gpu_id": "" if lesson.device == "cpu" else visible,
        }
        if not self.general:
            settings["alias_of_item_id"] = ["item_id_list"]
            settings["MAX_ITEM_LIST_LENGTH"] = self.width
            loss = keys.settings.get("loss_type", defaults(keys.model).get("loss_type"))
            if loss == "CE":
                settings["train_neg_sample_args"] = None
        try:
            return Config(model=keys.model, dataset="langptune", config_dict=settings)
        except (ValueError, TypeError, KeyError, NotImplementedError) as error:
            raise UserError(f"RecBole refuses the settings of {keys.model}: {error}") from None

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
        """The model's part of a RecBole checkpoint, as a copy in memory."""
        weights = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        return weights, copy.deepcopy(self.model.other_parameter())

    def restore(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Restore a copy that ``state`` made (caches of embeddings included)."""
        self.model.load_state_dict(state[0])
        self.model.load_other_parameter(state[1])

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Scores of the whole catalogue in our item order, float32 ``[S, n_items]``.

        An ID-based model gives equal scores for a user without training interactions; ``full_ranks`` then ranks the
        target in the middle of the catalogue.
        """
        import torch

        self.model.eval()
        out = np.empty((len(sessions), self.n_items), dtype=np.float32)
        step = 512
        with torch.no_grad():
            for start in range(0, len(sessions), step):
                part = sessions.slice(start, step)
                question = self._question(part).to(self.device)
                try:
                    scores = self.model.full_sort_predict(question)
                except NotImplementedError:
                    scores = self._by_pairs(question)
                scores = scores.view(len(part), -1)[:, self.item_at.to(scores.device)]
                out[start : start + len(part)] = scores.float().cpu().numpy()
        if self.general:
            unknown = [self.users[user] not in self.trained_users for user in sessions["user_id"].to_list()]
            out[np.asarray(unknown, dtype=bool)] = 0.0
        return out

    def _question(self, sessions: pl.DataFrame) -> Any:
        """The input of RecBole's prediction: users and, for a sequential model, their most recent items."""
        import torch
        from recbole.data.interaction import Interaction

        users = self.user_at[torch.tensor([self.users[user] for user in sessions["user_id"].to_list()])]
        if self.general:
            return Interaction({"user_id": users})
        # BERT4Rec appends its mask token and then removes the first position, so that position is padding.
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
        """Scores ``[S, n_items + 1]`` of models that have only ``predict`` on (user, item) pairs."""
        import torch
        from recbole.data.interaction import Interaction

        every = torch.arange(self.n_items + 1, device=self.device)
        step = max(1, (1 << 18) // len(every))
        scores = []
        for start in range(0, len(question), step):
            part = question[start : start + step]
            pairs = part.repeat_interleave(len(every))
            pairs.update(Interaction({"item_id": every.repeat(len(part))}))
            scores.append(self.model.predict(pairs).view(len(part), -1))
        return torch.cat(scores)
