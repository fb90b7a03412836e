"""Forked processes: an error instead of a process that waits for ever."""

import subprocess

from tests.support import programs
from tests.support.models import smallest_model
from vitpose_jax import checkpoint


def test_a_process_that_was_forked_after_jax_was_used_says_so(tmp_path):
    checkpoint.save(smallest_model(), tmp_path / "model")
    command = programs.command("estimate_in_a_fork", tmp_path / "model")
    done = subprocess.run(command, env=programs.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "done"
    assert len(others) == 4
    for line in others:
        assert line.startswith("this process was forked after JAX was used") and "spawn" in line
