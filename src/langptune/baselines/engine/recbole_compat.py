"""All fixes that RecBole 1.2.1 needs on numpy 2, scipy 1.17, pandas 3 and torch 2.13.

RecBole's last release predates these libraries. The comment of each fix names the place in RecBole and the failure.
``apply`` patches the running process, so RecBole runs in a process of its own (``scripts/fit_baseline.py``).
``torch.load`` is never called: the best state is kept in memory, and ``recbole_catalogue.check`` refuses settings that
load a file.
"""

from __future__ import annotations

import sys
import types
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from langptune.baselines.engine.recbole_catalogue import VERSION
from langptune.errors import UserError

_applied = False


def apply() -> None:
    """Import RecBole and patch it; a second call does nothing.

    Raises:
        UserError: RecBole is absent, is another version than ``VERSION``, or lacks an attribute that a fix
            replaces (an altered installation).
    """
    global _applied
    if _applied:
        return
    try:
        installed = version("recbole")
    except PackageNotFoundError:
        raise UserError(
            f"RecBole is not installed; run: pip install --no-deps recbole=={VERSION} (methods of kind recbole need it)"
        ) from None
    if installed != VERSION:
        raise UserError(
            f"RecBole {installed} is installed, but the fixes in baselines/engine/recbole_compat.py are for "
            f"{VERSION}; run: pip install --no-deps recbole=={VERSION}"
        )
    _numpy_names()
    # Warnings on read-only arrays and deprecated names in RecBole's own code, which a user cannot correct.
    warnings.filterwarnings("ignore", category=UserWarning, module="recbole")
    warnings.filterwarnings("ignore", category=FutureWarning, module="recbole")
    warnings.filterwarnings("ignore", message="(?s).*set on a copy of a DataFrame")
    _import_without_tensorboard()

    import scipy.sparse
    import torch
    from recbole.config.configurator import Config
    from recbole.data import transform
    from recbole.data.dataset import Dataset, SequentialDataset
    from recbole.model import layers
    from recbole.trainer import trainer

    # model/general_recommender/{lightgcn,ngcf,ncl,gcmc,spectralcf}.py fill the adjacency matrix through
    # dok_matrix._update, which scipy removed when dok_matrix was no longer a dict.
    scipy.sparse.dok_matrix._update = lambda self, data: self._dict.update(data)

    # config/configurator.py reads sys.argv: it would take our --spec for RecBole settings.
    _replace(Config, "_load_cmd_line", lambda self: {})
    # config/configurator.py passes every string setting to eval(); our settings have their types from YAML.
    _replace(Config, "_convert_config_dict", lambda self, settings: settings)
    # trainer/trainer.py opens a SummaryWriter that leaves log_tensorboard/ in the working directory.
    _replace(trainer, "get_tensorboard", lambda logger: _SilentWriter())

    # data/dataset/dataset.py:1217 and sequential_dataset.py:165: in pandas 3 Series.agg(len) is one number.
    _replace(Dataset, "_remap", _remap)
    _replace(SequentialDataset, "_benchmark_presets", _benchmark_presets)
    # data/dataset/dataset.py:648: chained fillna(inplace=True) does nothing under pandas 3's copy-on-write;
    # an absent id then becomes -9.2e18 and indexes out of range.
    _replace(Dataset, "_fill_nan", _fill_nan)

    # data/transform.py, BERT4Rec's masking: at most int(mask_ratio * length) of the masked positions are predicted,
    # lists shorter than 1 / mask_ratio crash, and Python loops over every item take more time than the network. The
    # replacement has the same distribution of masks, without those limits.
    _replace(transform.MaskItemSequence, "__call__", _mask_item_sequence)
    # model/layers.py computes gelu in six elementwise passes, a sixth of a transformer's time on a CPU. torch's gelu
    # is the same function in one pass.
    _replace(layers.FeedForward, "gelu", lambda self, x: torch.nn.functional.gelu(x))
    _applied = True


def model_class(name: str) -> type:
    """RecBole's class of a model, imported without side effects.

    The import of any sequential model imports model/sequential_recommender/sine.py, whose line 25 turns on autograd's
    anomaly detection for the whole process. Training is then 1.3 to 1.6 times slower.
    """
    import torch
    from recbole.utils import get_model

    model = get_model(name)
    torch.autograd.set_detect_anomaly(False)
    return model


def _replace(owner: Any, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        raise UserError(
            f"RecBole {VERSION} is installed but {owner.__name__}.{name} is missing: it was altered; "
            f"run: pip install --no-deps --force-reinstall recbole=={VERSION}"
        )
    setattr(owner, name, value)


def _numpy_names() -> None:
    """config/configurator.py (compatibility_settings) reads three names that numpy 2 removed."""
    for old, new in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if old not in np.__dict__:
            setattr(np, old, new)
    # data/interaction.py uses np.float before any Config has restored it.
    if "float" not in np.__dict__:
        np.float = np.float64


def _import_without_tensorboard() -> None:
    """Import RecBole with a stub of tensorboard: utils/utils.py imports SummaryWriter, although it is optional."""
    name = "torch.utils.tensorboard"
    kept = sys.modules.get(name)
    stub = types.ModuleType(name)
    stub.SummaryWriter = _SilentWriter
    sys.modules[name] = stub
    try:
        import recbole.trainer
        import recbole.utils  # noqa: F401
    except ImportError as error:
        raise UserError(f"RecBole cannot be imported ({error}); install the environment of envs/") from None
    finally:
        if kept is None:
            del sys.modules[name]
        else:
            sys.modules[name] = kept


class _SilentWriter:
    """A SummaryWriter that writes nothing."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing with a point of a curve."""

    def add_hparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing with the settings."""


def _remap(self: Any, remap_list: list[tuple[Any, str, Any]]) -> None:
    """``Dataset._remap`` with lengths taken per row."""
    import pandas as pd
    from recbole.utils import FeatureType

    if not remap_list:
        return
    tokens, split_point = self._concat_remaped_tokens(remap_list)
    new_ids_list, names = pd.factorize(tokens)
    new_ids_list = np.split(new_ids_list + 1, split_point)
    names = np.array(["[PAD]", *names])
    token_id = {token: number for number, token in enumerate(names)}
    for (feat, field, ftype), new_ids in zip(remap_list, new_ids_list, strict=True):
        if field not in self.field2id_token:
            self.field2id_token[field] = names
            self.field2token_id[field] = token_id
        if ftype == FeatureType.TOKEN:
            feat[field] = new_ids
        elif ftype == FeatureType.TOKEN_SEQ:
            lengths = feat[field].map(len).to_numpy()
            feat[field] = np.split(new_ids, np.cumsum(lengths)[:-1])


def _benchmark_presets(self: Any) -> None:
    """``SequentialDataset._benchmark_presets`` with lengths taken per row."""
    from recbole.utils import FeatureSource, FeatureType

    suffix = self.config["LIST_SUFFIX"]
    for field in self.inter_feat:
        if field + suffix in self.inter_feat:
            setattr(self, f"{field}_list_field", field + suffix)
    self.set_field_property(self.item_list_length_field, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
    self.inter_feat[self.item_list_length_field] = self.inter_feat[self.item_id_list_field].map(len)


def _fill_nan(self: Any) -> None:
    """``Dataset._fill_nan`` by assignment: absent ids become padding, absent numbers the column's mean."""
    from recbole.utils import FeatureType

    for feat_name in self.feat_name_list:
        feat = getattr(self, feat_name)
        for field in feat:
            kind = self.field2type[field]
            if kind == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(0).astype(np.int64)
            elif kind == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(feat[field].mean())
            else:
                dtype = np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64
                empty = np.array([], dtype=dtype)
                feat[field] = feat[field].map(lambda row, e=empty: e if isinstance(row, float) else row)


def _mask_item_sequence(self: Any, dataset: Any, interaction: Any) -> Any:
    """``MaskItemSequence.__call__`` on whole tensors.

    With probability ``ft_ratio``, only the last item of each row of a batch is masked, as in prediction. Otherwise
    every item is masked with probability ``mask_ratio``, at least one in a row. The loss of BERT4Rec takes position 0
    for "no prediction", so the first item is never masked.

    Adds to the interaction: the masked list ``[B, L]`` (mask token = number of items, padding included), and
    ``[B, K]`` positions, true items and negatives, padded with 0. K is the largest number of masks in a row.
    """
    import torch
    from recbole.data.interaction import Interaction

    items = interaction[self.ITEM_SEQ]
    n_items = dataset.num(self.ITEM_ID)
    last = interaction[self.ITEM_SEQ_LEN] - 1
    positions = torch.arange(items.shape[1])
    masked = positions[None, :] == last[:, None]
    if float(torch.rand(())) >= self.ft_ratio:
        drawn = (torch.rand(items.shape) < self.mask_ratio) & (items != 0)
        drawn[:, 0] = False
        masked = torch.where(drawn.any(dim=1, keepdim=True), drawn, masked)

    width = int(masked.sum(dim=1).max())
    # Sorting moves the masked positions of each row to the front, in order.
    index = torch.where(masked, positions[None, :], items.shape[1]).sort(dim=1).values[:, :width]
    real = index < items.shape[1]
    index = torch.where(real, index, 0)
    true = torch.where(real, items.gather(1, index), 0)
    wrong = torch.randint(1, n_items, true.shape)
    if self.config["loss_type"] == "BPR":
        while (clash := (wrong[:, :, None] == items[:, None, :]).any(dim=2)).any():
            wrong = torch.where(clash, torch.randint(1, n_items, wrong.shape), wrong)
    interaction.update(
        Interaction(
            {
                self.MASK_ITEM_SEQ: items.masked_fill(masked, n_items),
                self.POS_ITEMS: true,
                self.NEG_ITEMS: torch.where(real, wrong, 0),
                self.MASK_INDEX: index,
            }
        )
    )
    return interaction
