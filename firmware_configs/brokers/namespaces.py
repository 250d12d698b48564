"""Network namespaces (Linux): entering one, asking from inside one, and running a command there.

A namespace is named by a file: `/run/netns/NAME`, `/proc/PID/ns/net`, or `/proc/PID/fd/N` of one that has no name.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

from fedpruneshare.errors import SettingsError

T = TypeVar("T")
_CLONE_NEWNET: Final = 0x40000000
_OWN: Final = Path("/proc/thread-self/ns/net")
#: A program for `python -c`: with `-m` this module would be there twice, since its package imports it.
_ENTER: Final = f"import sys; from {__name__} import become; become(*sys.argv[1:])"


def enter_network(namespace: str) -> None:
    """Put the calling thread, and what it starts from now on, into a namespace. Raises `SettingsError`."""
    try:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SettingsError(
            f"network namespace {namespace}: {error}, expected one that this process may enter"
        ) from None


def new_network() -> None:
    """Put the calling thread into a namespace made for it. Raises `SettingsError` without the right to (root)."""
    try:
        _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET))
    except OSError as error:
        raise SettingsError(f"a network namespace of its own: {error}, expected the right to make one (root)") from None


def command_in_network(namespace: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs `arguments` in a namespace, in the same process; unchanged for an empty name."""
    if not namespace:
        return list(arguments)
    return [sys.executable, "-c", _ENTER, namespace, *arguments]


def is_private(namespace: str) -> bool:
    """Whether a namespace is another than the caller's, so that what listens in it is out of reach for others."""
    return bool(namespace) and os.stat(namespace).st_ino != _OWN.stat().st_ino


def call_in_network(namespace: str, function: Callable[[], T]) -> T:
    """What `function` returns or raises in a namespace; here for an empty name.

    A thread enters, so that the caller stays where it is; a socket made there stays there for good. The function
    must not start processes: they would end with the thread.
    """
    if not namespace:
        return function()

    def work() -> T:
        enter_network(namespace)
        return function()

    return call_in_thread(work)


def call_in_thread(function: Callable[[], T]) -> T:
    """What `function` returns or raises in a thread of its own, which it may take to another namespace."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # carried over to the caller
            errors.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _check(status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become(namespace: str, *arguments: str) -> None:
    """Enter a namespace and become the command that `arguments` are; exits with one line where that fails."""
    try:
        enter_network(namespace)
    except SettingsError as error:
        sys.exit(str(error))
    os.execvp(arguments[0], arguments)
