"""Mutated files: some seconds by default, a minute in CI. `fuzz.py` says what is checked."""

import json
import subprocess
import sys

import pytest

from tests.robustness import fuzz
from tests.support import programs

KINDS = ("safetensors", "config", "hub_config", "preprocessor", "index", "pth", "old_pth", "toml", "matlab", "zip")


def run_fuzz(seconds, seed):
    arguments = ["--seconds", str(seconds), "--seed", str(seed), "--kinds", *KINDS]
    command = [sys.executable, "-m", fuzz.__name__, *arguments]
    result = subprocess.run(command, env=programs.environment(), capture_output=True, text=True, timeout=seconds + 200)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    # Some changes do no harm: a kind that reads nothing at all tests nothing.
    assert [row[0] for row in rows] == list(KINDS) and all(int(row[2]) > 0 for row in rows), json.dumps(rows)


@pytest.mark.slow
def test_mutated_files_are_read_or_refused():
    run_fuzz(seconds=20, seed=0)


@pytest.mark.slow
def test_mutated_files_are_read_or_refused_for_a_minute():
    run_fuzz(seconds=60, seed=1)
