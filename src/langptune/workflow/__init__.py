"""From a config to the jobs of the workflow, without Snakemake. The rules in ``workflow/rules/`` use it.

``load`` reads a config into a ``Project``, which has every run, phase and file. A ``Job`` is one job of a rule, given
by its wildcards. ``stages`` reads the declarations of a script in ``scripts/``: ``spec`` and ``needs``. ``bind`` makes
the parts of a rule from them, and ``resources`` its resources. ``targets`` lists final files.
"""
