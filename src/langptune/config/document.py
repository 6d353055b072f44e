"""``config/README.md`` from the typed models: ``python -m langptune.config.document > config/README.md``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from langptune.config import (
    cluster,
    datasets,
    judges,
    methods,
    models,
    prompts,
    ranges,
    rates,
    recipes,
    sample,
    settings,
)

HEAD = """# Configuration

Generated from the typed models in `src/langptune/config/` (`make docs`); a test checks that it is current. Unknown
keys, wrong types and unknown names are errors before any job starts. Each is one line with file, key, value and the
nearest valid key.

| file | content |
|---|---|
| `config.yaml` | the default run: `make demo`, `snakemake --cores all` |
| `ml-100k.yaml` | a long run: all users, most methods, five seeds, tuned |
| `baselines.yaml` | every baseline, tuned with one budget: five trials each |
| `smoke.yaml` | the whole workflow in minutes, for tests and for a first look |
| `paper.yaml` | the paper's grid, for a cluster: two categories of Amazon Reviews 2023, two encoders |
| `studies.yaml` | studies of the paper: one key of some methods over several values |
| `rlso.yaml` | the effect of RLSO on MovieLens-100K, with controls: all test users, three seeds, hours on two cores |
| `steering.yaml` | options that keep profiles steerable (CL, reading of edits, reward, denials), compared |
| `reward-study.yaml` | rewards x algorithms of RLSO, all with the same limit of generated tokens |
| `ml-1m.yaml` | baselines on MovieLens-1M under two protocols, to compare with published figures |
| `two-datasets.yaml` | the default run on two datasets and transfer; the second is an optional package (docs/data.md) |
| `datasets.yaml`, `models.yaml`, `methods.yaml`, `recipes.yaml`, `prompts.yaml` | registries, one entry each |
| `judges.yaml` | judges of profiles, one entry each |
| `rates.yaml` | stated speeds, for `make plan` |
| `accelerate/*.yaml` | training in several processes; the keys are accelerate's ([README](accelerate/README.md)) |
| `../slurm/cluster.yaml` | names and limits of your SLURM cluster ([docs/cluster.md](../docs/cluster.md)) |
| `../slurm/profile.yaml`, `../profiles/default/profile.yaml` | Snakemake's own flags |

An entry of `recipes.yaml` may begin with `like: <entry>`. It then takes all keys of that entry but the title, with
the `recipe_overrides` of that entry applied; then its own keys apply (`train`, `terms`, `guard` and `settings` key by
key), then its own overrides.

A config file given with `--configfile` replaces the default one (the two are not merged); `--config key=value` changes
single keys of the config file in use.
"""

SECTIONS = [
    ("A run (`config.yaml`)", settings.Config),
    ("`sample`", sample.Sample),
    ("`generation`", settings.Generation),
    ("`training`", settings.Training),
    ("`studies`: one entry", settings.Study),
    ("`comparison`", settings.Comparison),
    ("`contrasts` of a comparison: one entry", settings.Contrast),
    ("`interpretability`", settings.Interpretability),
    ("`memorisation`", settings.Memorisation),
    ("`datasets.yaml`: one entry", datasets.DatasetEntry),
    ("`source` of a dataset", datasets.DataSource),
    ("`expect` of a dataset", datasets.Counts),
    ("`published` of a dataset: one step", datasets.PublishedCounts),
    ("`tables` of a dataset", datasets.Tables),
    ("`protocol: {name: leave-one-out}`", datasets.LeaveOneOut),
    ("`protocol: {name: temporal}`", datasets.Temporal),
    ("`protocol: {name: paper}`", datasets.Paper),
    ("`limits` of the protocol `paper`", datasets.Limits),
    ("`models.yaml`: `role: encoder`", models.EncoderEntry),
    ("`models.yaml`: `role: decoder`", models.DecoderEntry),
    ("`models.yaml`: `role: verifier`", models.VerifierEntry),
    ("`source` of a model", models.ModelSource),
    ("`methods.yaml`: `kind: profiles`", methods.ProfileMethod),
    ("`encoder_from` of a profile method", methods.EncoderFrom),
    ("`edit_reading` of a profile or text method", methods.EditReading),
    ("`methods.yaml`: `kind: control`", methods.ControlMethod),
    ("`methods.yaml`: `kind: text`", methods.TextMethod),
    ("`methods.yaml`: `kind: fusion`", methods.FusionMethod),
    *((f"`methods.yaml`: `kind: {kind}`", method) for kind, method in methods.BASELINE_METHODS.items()),
    ("`tune` of a baseline: a range", ranges.Range),
    ("`recipes.yaml`: `kind: contrastive`", recipes.ContrastiveRecipe),
    ("`recipes.yaml`: `kind: reinforcement`", recipes.ReinforcementRecipe),
    ("`train` of a reinforcement recipe", recipes.Trained),
    ("`guard` of a reinforcement recipe", recipes.GuardLimits),
    ("`recipes.yaml`: `kind: per-encoder`", recipes.PerEncoder),
    ("`prompts.yaml`: one entry", prompts.Prompt),
    ("`judges.yaml`: one entry", judges.Judge),
    ("`instruction` of a judge", judges.Instruction),
    ("`answers` of a judge", judges.Answers),
    ("`rates.yaml`: one script, or `other`", rates.Rate),
    ("`slurm/cluster.yaml`", cluster.Cluster),
    ("`partition`, `qos`, `constraint` of a cluster", cluster.Kinds),
    ("`gpus` of a cluster", cluster.Gpus),
    ("`limits` of a cluster", cluster.Limits),
]


def type_name(annotation: Any) -> str:
    """The name of a type on the page."""
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    text = getattr(annotation, "__name__", None) if not get_args(annotation) else None
    if text:
        return text
    args = get_args(annotation)
    origin = getattr(annotation, "__origin__", None)
    if origin in (list, dict, tuple):
        return f"{origin.__name__}[{', '.join(type_name(a) for a in args)}]"
    if hasattr(annotation, "__metadata__"):
        return type_name(args[0])
    if str(origin).endswith("Literal"):
        return " or ".join(f"`{a}`" for a in args)
    return " or ".join(dict.fromkeys(type_name(a) for a in args))


def table(model: type[BaseModel]) -> str:
    """The keys of one model as a Markdown table."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required"
        if not field.is_required():
            value = field.default
            default = "see below" if isinstance(value, BaseModel) else f"`{'null' if value is None else value}`"
        cells = [f"`{name}`", type_name(field.annotation), default, field.description or ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole of ``config/README.md``."""
    parts = [HEAD]
    for title, model in SECTIONS:
        about = inspect.cleandoc(model.__doc__ or "")
        parts.append(f"## {title}\n\n{about}\n\n{table(model)}\n")
    return "\n".join(parts)


README = Path(__file__).resolve().parents[3] / "config" / "README.md"

if __name__ == "__main__":
    print(page(), end="")
