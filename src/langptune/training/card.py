"""Model cards of trained encoders and decoders, in the format of model hubs."""

from __future__ import annotations

import json
from typing import Any

import yaml

from langptune.config.recipes import Recipe
from langptune.markup import markdown

USE = {
    "encoder": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "this folder")
```

Keep the adapter in float32 and unmerged (`torch.autocast` where the model is bfloat16): merging into bfloat16 weights
rounds the sum, and the merged model is not the one that was measured.""",
    "decoder": """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this folder")
```""",
}


def card(
    base: str,
    phase: str,
    dataset: str,
    licence: str,
    recipe: Recipe,
    state: dict[str, Any],
    seed: int,
    role: str,
    train_sessions: int,
) -> str:
    """README.md of a trained model.

    Args:
        base: public name of the untrained model.
        dataset: title and licence of the data.
        licence: licence of the base model, which the trained one inherits.
        state: final state of ``Watch``.
        role: ``encoder`` or ``decoder``.
    """
    front = {
        "base_model": base,
        "license": "other",
        "license_name": licence,
        "library_name": "peft" if role == "encoder" else "sentence-transformers",
        "tags": ["recommendation", "user-profiles", "langptune"],
    }
    settings = recipe.model_dump(mode="json", exclude={"title", "launch"})
    first, best = (next(row for row in state["curve"] if row["batch"] == batch) for batch in (0, state["best_step"]))
    names = [key for key in first if key.startswith("val_") and not key.endswith("_se")]
    rows = [f"| {key.removeprefix('val_')} | {first[key]:.4f} | {best[key]:.4f} |" for key in names if key in best]
    what = "profile encoder, a PEFT adapter" if role == "encoder" else "recommender decoder"
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {what[0].upper()}{what[1:]}, trained by {recipe.called}",
            "",
            f"Phase `{phase}`, seed {seed}. Base model: {markdown(base)} (licence: {markdown(licence)}).",
            "",
            f"Data: {markdown(dataset)}; {train_sessions} train sessions. The selected state is that of batch "
            f"{state['best_step']} of {state['curve'][-1]['batch']}, chosen on validation sessions; test sessions were "
            "not used.",
            "",
            "| on validation sessions | before | selected |",
            "|---|---|---|",
            *rows,
            "",
            "## Use",
            "",
            USE[role].format(base=json.dumps(base)),
            "",
            "## Recipe",
            "",
            "```yaml",
            yaml.safe_dump(settings, sort_keys=False).strip(),
            "```",
            "",
            "The hashes of data, code and models are in `manifest.json`.",
            "",
        ]
    )
