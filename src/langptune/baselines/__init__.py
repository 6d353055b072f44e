"""Baselines: methods that rank without texts. The name of each file is a kind of methods.yaml.

A file has two classes: ``Keys``, the keys of its entries, and ``Model``, which is fitted and scores sessions
(``langptune.baselines.frame.baseline``). These files are imported whenever a config is read. So at their top they
import only the standard library, pydantic and ``frame.baseline``. All other imports are inside functions.
"""

from langptune.registry import Registry

REGISTRY = Registry("langptune.baselines")
