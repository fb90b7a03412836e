"""`vitpose-jax`, hearing Ctrl-C also where a shell started the tests in the background."""

import signal

from vitpose_jax.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
main()
