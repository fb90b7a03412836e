import threading
import time

import pytest

from vitpose_jax.video.threads import Behind, frames_ahead


def test_items_come_in_order_from_another_thread():
    names = set()

    def items():
        for number in range(20):
            names.add(threading.current_thread().name)
            yield number

    assert list(frames_ahead(items())) == list(range(20))
    assert len(names) == 1 and threading.current_thread().name not in names


def test_no_more_than_so_many_are_read_ahead():
    read = []

    def items():
        for number in range(20):
            read.append(number)
            yield number

    ahead = frames_ahead(items(), waiting=3)
    assert next(ahead) == 0
    time.sleep(0.05)
    assert len(read) <= 4
    ahead.close()
    assert len(read) <= 5


def test_an_error_of_the_items_comes_in_its_turn():
    def items():
        yield 1
        raise ValueError("broken")

    ahead = frames_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_items_are_handled_in_order_behind():
    handled = []
    behind = Behind[int](handled.append, waiting=2)
    for number in range(10):
        behind.put(number)
        assert len(handled) >= number - 2
    behind.close()
    assert handled == list(range(10))


def test_an_error_of_the_handler_is_raised():
    def handle(number: int) -> None:
        raise OSError("no space left")

    behind = Behind[int](handle, waiting=1)
    behind.put(0)
    with pytest.raises(OSError, match="no space left"):
        behind.put(1)
    behind.close()
    behind = Behind[int](handle)
    behind.put(0)
    with pytest.raises(OSError, match="no space left"):
        behind.close()
