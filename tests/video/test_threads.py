import threading
import time

import pytest

from vitpose_jax.video.threads import Behind, frames_ahead, newest_frames


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


def test_of_a_live_source_the_newest_item_comes():
    turn = threading.Event()

    def items():
        yield 0
        turn.wait(10)
        yield from range(1, 9)

    newest = newest_frames(items())
    assert next(newest) == 0
    turn.set()
    time.sleep(0.1)
    assert list(newest) == [8]


def test_a_live_source_ends_with_its_error_and_can_be_closed():
    def broken():
        yield 1
        raise ValueError("no signal")

    with pytest.raises(ValueError, match="no signal"):
        assert list(newest_frames(broken())) == [1]

    def endless():
        while True:
            time.sleep(0.005)
            yield 0

    newest = newest_frames(endless())
    assert next(newest) == 0
    newest.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("frames")]


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
