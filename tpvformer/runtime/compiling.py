"""Compile all Numba kernels: report it, let one process at a time do it, and keep the result for later runs.

Numba compiles a kernel at its first call with arguments of new types, and caches it in a folder: that of
NUMBA_CACHE_DIR, else the sources' ``__pycache__``, else the user's cache. ``kept`` extends Numba's cache:

* A lock: of several processes that need a kernel, one compiles it and the others read the cached file. * Errors of the
cache are not fatal: the kernel then lives as long as the process, with one message. * A hash of all kernel sources in
addition to the function's own, because functions of other files may be inlined.

Numba is imported with the first kernel. Messages go to the log of a run, or to stderr.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Generator, List, Optional

QUIET = 3.0  # seconds without compiling until the end is reported
PATIENCE = 600.0  # seconds to wait for another process; then this one compiles as well
LOCK = "tpvformer.lock"


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that Numba compiles; ``options`` are those of ``numba.njit``."""
    import numba

    return lambda function: kept(numba.njit(no_cfunc_wrapper=True, **options)(function))


def inner(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that only other kernels call; no entry for Python is compiled."""
    return kernel(no_cpython_wrapper=True, **options)


def adopt(module: ModuleType) -> None:
    """Apply ``kept`` to all kernels of a module that were made by ``numba.njit``."""
    for value in vars(module).values():
        if hasattr(value, "enable_caching"):
            kept(value)


def kept(dispatcher: Any) -> Any:
    """Give a compiled function the cache of this module, or none if no folder can be written."""
    _listen()
    try:
        dispatcher._cache = _store_class()(dispatcher.py_func)
    except RuntimeError:  # Numba raises it if it finds no folder
        _word.homeless = True
    return dispatcher


@functools.lru_cache(maxsize=1)
def can_keep() -> bool:
    """Return whether Numba finds a folder to cache kernels in. Without one its ``cache=True`` is an error."""
    try:
        return bool(_store_class()(can_keep.__wrapped__))
    except RuntimeError:
        _word.homeless = True
        return False


@contextlib.contextmanager
def said_together() -> Generator[None, None, None]:
    """Report the kernels compiled inside the context in one line at its end; elsewhere after ``QUIET`` seconds."""
    outer, _word.waits = _word.waits, True
    try:
        yield
    finally:
        _word.waits = outer
        if not outer:
            _word.done()


def compiled() -> int:
    """Return the number of kernels that this process has compiled so far, without those read from the cache."""
    return _word.total


def _say(text: str) -> None:
    log = logging.getLogger("tpvformer")
    if log.hasHandlers() and log.isEnabledFor(logging.INFO):
        log.info(text)
    else:
        print(text, file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=None)
def _say_once(text: str) -> None:
    _say(text)


class _Word:
    """Track and report compilations. Numba's lock lets one thread at a time call ``start`` and ``end``."""

    def __init__(self) -> None:
        self.homeless = False  # no folder for the cache
        self.waits = False  # inside ``said_together``
        self.total = 0
        self._ours: List[bool] = []  # one entry for each function in compilation, nested
        self._began = self._seconds = 0.0
        self._count = 0  # kernels since the last ``done``
        self._timer: Optional[threading.Timer] = None

    @property
    def idle(self) -> bool:
        return not self._ours

    def start(self, ours: bool) -> None:
        if self.idle and ours:
            self._stop_timer()
            self._began = time.perf_counter()
            if not self._count:
                _say(_MORE if self.total else _BEGINS_HOMELESS if self.homeless else _BEGINS)
        self._ours.append(ours)

    def end(self) -> None:
        ours = self._ours.pop()
        if self.idle and ours:
            self.total += 1
            self._count += 1
            self._seconds += time.perf_counter() - self._began
            if not self.waits:
                self._timer = threading.Timer(QUIET, self.done)
                self._timer.daemon = True
                self._timer.start()

    def done(self) -> None:
        self._stop_timer()
        count, seconds = self._count, self._seconds
        self._count, self._seconds = 0, 0.0
        if count:
            _say(f"compiled {count} CPU kernel{'s' if count > 1 else ''} in {seconds:.0f} s")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_BEGINS = "compiling CPU kernels, once for all runs on this machine: some 10 to 30 s, longer where other programs run"
NO_FOLDER = "there is no folder to keep them in; set NUMBA_CACHE_DIR to one that can be written"
_BEGINS_HOMELESS = f"compiling CPU kernels, about 10 to 30 s in every run, because {NO_FOLDER}"
_MORE = "compiling more CPU kernels"
_word = _Word()
atexit.register(_word.done)


def say_done() -> None:
    """Print now that compiling is done, if it is not printed yet."""
    _word.done()


@functools.lru_cache(maxsize=1)
def _listen() -> None:
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            _word.start(event.data["dispatcher"].py_func.__module__.startswith("tpvformer."))

        def on_end(self, event: Any) -> None:
            _word.end()

    event.register("numba:compile", Listener())


@functools.lru_cache(maxsize=1)
def _store_class() -> Any:
    from numba.core.caching import FunctionCache

    class Store(FunctionCache):
        """Cache kernels: Numba calls ``load_overload``, compiles on a miss, then calls ``save_overload``."""

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            found = self._stored(sig, target_context)
            if found is None:
                _lock(self.cache_path)
                found = self._stored(sig, target_context)  # another process may have compiled it in the meantime
                if found is not None:
                    _unlock(self.cache_path)
            return found

        def _stored(self, sig: Any, target_context: Any) -> Any:
            try:
                return super().load_overload(sig, target_context)
            except Exception as err:  # any damage of the files: compiling gives the same kernel
                _say_once(f"compiled kernels in {self.cache_path} cannot be read ({err!r}): they are compiled again")
                return None

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                super().save_overload(sig, data)
            except Exception as err:
                reason = getattr(err, "strerror", None) or repr(err)
                _say_once(
                    f"compiled kernels cannot be stored in {self.cache_path} ({reason}): the next run compiles them "
                    "again; make room there, or set NUMBA_CACHE_DIR to another folder"
                )
            finally:
                _unlock(self.cache_path)

        def _index_key(self, sig: Any, codegen: Any) -> Any:
            sources = _stamp(os.path.dirname(self._py_func.__code__.co_filename))
            return (*super()._index_key(sig, codegen), sources)

    return Store


@functools.lru_cache(maxsize=None)
def _stamp(folder: str) -> str:
    """Return a hash of the kernel sources in a folder; of nothing if it cannot be listed, as in an archive."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.py")):
        content = file.read_bytes()
        if b"numba" in content or b"compiling" in content:
            digest.update(content)
    return digest.hexdigest()


_held: Dict[str, List[int]] = {}  # folder -> lock file, number of nested kernels that hold it


def _lock(folder: str) -> None:
    """Wait until no other process compiles for this folder; do not wait if files cannot be locked."""
    if _word.idle:
        _forget_locks()  # locks of kernels that failed to compile
    if folder in _held:
        _held[folder][1] += 1
        return
    try:
        import fcntl

        file = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    except (ImportError, OSError):
        return
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held[folder] = [file, 1]
            return
        except BlockingIOError:
            _say_once("waiting for another process that compiles CPU kernels")
            time.sleep(0.05)
        except OSError:
            break
    os.close(file)


def _unlock(folder: str) -> None:
    if folder in _held:
        _held[folder][1] -= 1
        if not _held[folder][1]:
            os.close(_held.pop(folder)[0])


def _forget_locks() -> None:
    """Close the lock files. In a forked child these are copies, and the parent keeps its lock."""
    for file, _ in _held.values():
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
