"""Signals: the first stops a run gently, the second ends it."""

import os
import signal
import threading

import pytest

from scanfield.cli.interrupt import stop_on_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number, capsys):
    before = signal.getsignal(number)
    stop = threading.Event()
    with stop_on_interrupt(stop):
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        assert "once more to end at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            stop.wait(0.01)  # lets the interpreter run the handler
    assert signal.getsignal(number) is before


def test_signals_of_two_kinds_ask_once(capsys):
    """What torchrun's processes get on one Ctrl-C."""
    stop = threading.Event()
    with stop_on_interrupt(stop):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop.wait(5)
            stop.wait(0.01)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            stop.wait(0.01)


def test_other_threads_run_without_handlers():
    done = []

    def work():
        with stop_on_interrupt(threading.Event()):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert done == [True]
