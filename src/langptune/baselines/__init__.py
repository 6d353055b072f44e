"""Baselines: what ranks without a text. Each file is a kind of methods.yaml, by its name.

A file has two classes: ``Keys``, the keys of its entries, and ``Model``, which is fitted and scores sessions
(``langptune.baselines.frame.baseline``). These files are imported whenever a config is read. So at their top they
import the standard library, pydantic and ``frame.baseline``; all else they import inside functions.
"""
