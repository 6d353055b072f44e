"""LangPTune: natural-language user profiles for recommendation, as a reproducible benchmark.

Each subpackage imports only from those before it in this list: ``errors``, ``reading``, ``files``,
``spreadsheet``, ``markup``, ``alike``, ``registry``, ``metrics``, ``list_metrics``, ``randomness``, ``meter``,
``config``, ``allowed``, ``processes``, ``provenance``, ``gpus``, ``launch``, ``slurm``, ``stage``, ``data``,
``thinking``, ``language``, ``prompts``, ``models``, ``endpoint``, ``ranking``, ``profiles``, ``comparison``,
``memorisation``, ``interpretability``, ``training``, ``baselines``, ``judge``, ``survey``, ``figures``, ``report``,
``workflow``, ``benchmarks``, ``plan``, ``cost``, ``inference``, ``explorer``, ``cli``.
Importing the package itself imports none of them.
"""
