"""The RecBole models and settings that can be a baseline here, read from RecBole's files without importing it.

So a config can be checked quickly before any job starts.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from langptune.config.base import nearest
from langptune.errors import UserError
from langptune.provenance import installed

VERSION = "1.2.1"
"""The release that ``recbole_compat`` was written for."""

_TRAINING_KEYS = (
    "train_batch_size",
    "learner",
    "learning_rate",
    "weight_decay",
    "require_pow",
    "enable_amp",
    "enable_scaler",
)
_OURS = {
    "epochs": "epochs",
    "stopping_step": "patience",
    "eval_step": "validate_every",
    "MAX_ITEM_LIST_LENGTH": "history_items",
}
_REAL = ("negative_weight",)
"""Real numbers whose default in RecBole's files is a whole number above 1."""
_REFUSED = {
    "Pop": "counts batches, not interactions; use the method 'pop'",
    "GRU4RecF": "needs item features, which this benchmark gives to no baseline",
    "SASRecF": "needs item features, which this benchmark gives to no baseline",
    "FDSA": "needs item features, which this benchmark gives to no baseline",
    "S3Rec": "needs item features and a pretraining run",
    "GRU4RecKG": "needs knowledge-graph embeddings",
    "KSR": "needs knowledge-graph embeddings",
    "DIN": "predicts clicks on labelled pairs",
    "DIEN": "predicts clicks on labelled pairs",
    "NCL": "alternates training with clustering in a procedure of its own",
    "RaCT": "needs three training stages",
}
_FAMILIES = {
    "general_recommender": "",
    "sequential_recommender": "",
    "context_aware_recommender": "is a click-through model on labelled features",
    "exlib_recommender": "is a click-through model on labelled features",
    "knowledge_aware_recommender": "needs a knowledge graph",
}


@cache
def models() -> dict[str, str]:
    """RecBole's model names -> the folder (family) of each, read without importing RecBole.

    Raises:
        UserError: RecBole is not installed.
    """
    root = installed("recbole")
    if root is None:
        raise UserError(
            f"RecBole is not installed; run: pip install --no-deps recbole=={VERSION} (methods of kind recbole need it)"
        )
    families = {}
    for properties in sorted((root / "properties" / "model").glob("*.yaml")):
        for family in _FAMILIES:
            if (root / "model" / family / f"{properties.stem.lower()}.py").is_file():
                families[properties.stem] = family
    return families


def check(model: str, settings: dict[str, Any]) -> None:
    """Refuse a model or settings that cannot be trained here, before anything is loaded.

    Raises:
        UserError: an unknown model or setting (the line names the nearest valid one), a model that needs data or a
            training procedure which this benchmark does not have, a setting that belongs to the method entry, a
            number written as text, or a fraction where RecBole takes a whole number.
    """
    known = models()
    usable = [name for name, family in known.items() if name not in _REFUSED and not _FAMILIES[family]]
    if model not in known:
        # RecBole's own message for this is "No module named lightgbm"
        exact = [name for name in usable if name.lower() == model.lower()]
        raise UserError(f"RecBole has no model '{model}'{nearest(exact[0] if exact else model, usable)}")
    reason = _REFUSED.get(model) or _FAMILIES[known[model]]
    if reason:
        raise UserError(f"RecBole's {model} cannot be a baseline here: it {reason}")
    known_settings = defaults(model)
    for key, value in settings.items():
        if key in _OURS:
            raise UserError(f"{model}: setting '{key}' is the method's own key '{_OURS[key]}'; set it there")
        if key not in known_settings:
            raise UserError(f"{model}: unknown setting '{key}'{nearest(key, list(known_settings))}")
        default = known_settings[key]
        # A default of 0 or 1 says nothing: dropout_prob is 0 in some of RecBole's files.
        if type(default) is int and default > 1 and isinstance(value, float) and key not in _REAL:
            raise UserError(f"{model}: setting '{key}' is a whole number; write {value:.0f} instead of {value}")
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if number and isinstance(value, str):
            raise UserError(
                f"{model}: setting '{key}' is the text '{value}', not a number; YAML wants 1.0e-4, not 1e-4"
            )


def defaults(model: str) -> dict[str, Any]:
    """Settings that a registry entry may change -> RecBole's defaults."""
    folder = installed("recbole") / "properties"
    overall = yaml.safe_load((folder / "overall.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((folder / "model" / f"{model}.yaml").read_text(encoding="utf-8")) or {}
    # "transform" is an internal of the model; a path or a pretraining switch would make RecBole load a pickle.
    own = {k: v for k, v in own.items() if k != "transform" and not k.endswith("_path") and "pretrain" not in k}
    return {**{key: overall[key] for key in _TRAINING_KEYS}, **own}
