"""From a config to the jobs of the workflow, without Snakemake. The rules in ``workflow/rules/`` use it.

``load`` reads a config into a ``Project``, which knows every run, phase and file. A ``Job`` is what the wildcards of a
rule stand for. ``stages`` reads what a script in ``scripts/`` declares: ``spec`` and ``needs``. ``bind`` makes the
parts of a rule from them, ``resources`` what is asked of a scheduler. ``targets`` lists final files.
"""
