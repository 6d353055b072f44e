"""LangPTune: natural-language user profiles for recommendation, as a reproducible benchmark.

The rooms of the library import only from rooms above them in this list: ``errors``, ``files``, ``metrics``,
``config``, ``provenance``, ``stage``, ``data``, ``prompts``, ``models``, ``ranking``, ``profiles``,
``training``, ``baselines``, ``comparison``, ``figures``, ``plan``. Importing the package itself imports none of them.
"""
