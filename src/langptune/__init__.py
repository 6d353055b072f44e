"""LangPTune: natural-language user profiles for recommendation, as a reproducible benchmark.

The rooms of the library import only from rooms above them in this list: ``errors``, ``reading``, ``files``,
``spreadsheet``, ``markup``, ``alike``, ``registry``, ``metrics``, ``list_metrics``, ``randomness``, ``meter``,
``config``, ``allowed``, ``processes``, ``provenance``, ``gpus``, ``launch``, ``slurm``, ``stage``, ``data``,
``thinking``, ``prompts``, ``models``, ``endpoint``, ``ranking``, ``profiles``, ``comparison``, ``memorisation``,
``interpretability``, ``training``, ``baselines``, ``judge``, ``survey``, ``figures``, ``report``, ``workflow``,
``benchmarks``, ``plan``, ``cost``, ``inference``, ``explorer``, ``cli``.
Importing the package itself imports none of them.
"""
