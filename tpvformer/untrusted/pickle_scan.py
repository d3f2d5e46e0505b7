"""Scan a pickle before it is loaded: its nesting depth and its size with every reference counted as a copy.

A few hundred bytes can describe a list that holds itself ten times over at each of ten levels, or a tuple so deep that
hashing it overflows the C stack. ``scan`` simulates the unpickler's stack with sizes in place of objects. It accepts
what Python's picklers write for trees of data, not every program: no objects that refer to themselves, none that
change after they were used elsewhere, no opcode that only hand-made pickles have.

Keys can be chosen so that all have the same hash: a dict then compares each with all before it. Text is safe from that
(Python hashes it with a secret), and so are whole numbers below 2**55, which differ in their hashes. Of all other keys
``scan`` counts what comparing each with each would take.
"""

from __future__ import annotations

import collections
import functools
import logging
import pickle
from typing import Any, Callable, Iterable, NamedTuple

import numpy as np

DEEPEST = 64  # levels of containers; info files and checkpoints have fewer than 12
SPREAD = 64  # objects a byte of the file, once every reference is counted as a copy
FREE = 2**20  # objects that are allowed whatever the size of the file
COMPARED = 4  # comparisons of keys that may be alike, a byte of the file; a large key counts as its parts
FREE_COMPARED = 2**24  # that are allowed whatever the size of the file: 5,792 such keys in one dict
ALIKE = 16  # keys of a set with the same hash
COMPILED_FROM = 2**22  # bytes; smaller pickles are scanned sooner than the compiled function is loaded


class ScanError(pickle.UnpicklingError):
    """A pickle that no Python pickler wrote for plain data; the message says what is wrong with it."""


class Scanned(NamedTuple):
    """Hold the result of ``scan``."""

    end: int  # the first byte after the pickle
    spread: int  # objects, with every reference counted as a copy; a long text counts as one for each 16 bytes


_BAD_OPCODE, _SHORT, _STACK, _MEMO, _DEEP, _SPREAD, _ITSELF, _LONG, _KEYS = range(1, 10)
_WORDS = {
    _BAD_OPCODE: "an opcode that pickles of plain data do not have",
    _SHORT: "it ends early",
    _STACK: "its stack is empty where something is needed",
    _MEMO: "it refers to an object that it does not have",
    _DEEP: f"it nests deeper than {DEEPEST} levels",
    _SPREAD: "it refers to its own parts so often that they would not fit in memory",
    _ITSELF: "one of its objects holds itself or changes after its use",
    _LONG: "a number or a name of it is too long",
    _KEYS: "it has so many keys that are neither text nor small whole numbers that finding one could take hours",
}
_LONGEST = 1024  # characters of a number or a name

# what follows an opcode: 0 to 8: so many bytes; then a line, two lines, a length of 1, 4 or 8 bytes and as much content
_LINE, _TWO_LINES, _BY_1, _BY_4, _BY_8 = 9, 10, 11, 12, 13
# what an opcode does to the stack
(
    _NONE, _PUSH, _MARK, _NEW_0, _NEW_1, _NEW_2, _NEW_3, _NEW_MARK, _ADD_1, _ADD_2, _ADD_MARK, _POP_2_PUSH, _PUT, _GET,
    _MEMOIZE, _STOP, _BAD, _DROP_1,
) = range(18)  # fmt: skip
_OPCODES = {
    b"\x80": (1, _NONE), b"\x95": (8, _NONE), b".": (0, _STOP), b"(": (0, _MARK),
    b"N": (0, _PUSH), b"\x88": (0, _PUSH), b"\x89": (0, _PUSH), b"J": (4, _PUSH), b"K": (1, _PUSH), b"M": (2, _PUSH),
    b"G": (8, _PUSH), b"I": (_LINE, _PUSH), b"L": (_LINE, _PUSH), b"F": (_LINE, _PUSH), b"\x8a": (_BY_1, _PUSH),
    b"\x8b": (_BY_4, _PUSH), b"S": (_LINE, _PUSH), b"V": (_LINE, _PUSH), b"T": (_BY_4, _PUSH), b"U": (_BY_1, _PUSH),
    b"X": (_BY_4, _PUSH), b"\x8c": (_BY_1, _PUSH), b"\x8d": (_BY_8, _PUSH), b"B": (_BY_4, _PUSH), b"C": (_BY_1, _PUSH),
    b"\x8e": (_BY_8, _PUSH), b"\x96": (_BY_8, _PUSH), b"c": (_TWO_LINES, _PUSH), b"P": (_LINE, _PUSH),
    b")": (0, _NEW_0), b"]": (0, _NEW_0), b"}": (0, _NEW_0), b"\x8f": (0, _NEW_0), b"\x85": (0, _NEW_1),
    b"Q": (0, _NEW_1), b"\x86": (0, _NEW_2), b"R": (0, _NEW_2), b"\x81": (0, _NEW_2), b"\x87": (0, _NEW_3),
    b"\x92": (0, _NEW_3), b"t": (0, _NEW_MARK), b"l": (0, _NEW_MARK), b"d": (0, _NEW_MARK), b"\x91": (0, _NEW_MARK),
    b"o": (0, _NEW_MARK), b"i": (_TWO_LINES, _NEW_MARK), b"a": (0, _ADD_1), b"b": (0, _ADD_1), b"s": (0, _ADD_2),
    b"e": (0, _ADD_MARK), b"u": (0, _ADD_MARK), b"\x90": (0, _ADD_MARK), b"\x93": (0, _POP_2_PUSH),
    b"p": (_LINE, _PUT), b"q": (1, _PUT), b"r": (4, _PUT), b"g": (_LINE, _GET), b"h": (1, _GET), b"j": (4, _GET),
    b"\x94": (0, _MEMOIZE),
}  # fmt: skip
_ARGUMENT, _ACTION = np.zeros(256, np.int64), np.full(256, _BAD, np.int64)
for _code, (_argument, _action) in _OPCODES.items():
    _ARGUMENT[_code[0]], _ACTION[_code[0]] = _argument, _action
_FORGETFUL = _ACTION.copy()
_FORGETFUL[ord("b")] = _DROP_1
_TEXTS = np.zeros(256, np.bool_)  # lines that are content and may be long
for _code in b"SV":
    _TEXTS[_code] = True
# the longest content with which two different values of an opcode cannot have been given the same hash; -1: with none
_APART = np.full(256, -1, np.int64)
for _code in b"N\x88\x89JKMSVTUX\x8c\x8dBC\x8e":
    _APART[_code] = 2**61
_APART[ord("I")], _APART[ord("L")], _APART[0x8A], _APART[0x8B] = 16, 17, 7, 7  # digits, and bytes, below 2**55
_MOST = 2**61


def scan(data: Any, compiled: bool = True, forgets_state: bool = False) -> Scanned:
    """Look through the pickle that ``data`` (bytes or a view of some) begins with. Raises ScanError.

    ``compiled`` False: without Numba, for a small pickle at the beginning of much else. ``forgets_state``: its reader
    forgets what objects are given as their state, which may therefore refer to them.
    """
    most = min(SPREAD * len(data) + FREE, _MOST)
    walk = _compiled() if compiled and len(data) >= COMPILED_FROM else _walk
    found = data if walk is _walk else np.frombuffer(data, np.uint8)  # Python indexes bytes sooner than arrays
    actions = _FORGETFUL if forgets_state else _ACTION
    compared = float(COMPARED * len(data) + FREE_COMPARED)
    problem, end, spread = walk(found, _ARGUMENT, actions, _TEXTS, _APART, DEEPEST, most, compared)
    if problem:
        raise ScanError(f"{_WORDS[int(problem)]}, at byte {int(end)}")
    return Scanned(int(end), int(spread))


def check_hashes(keys: Iterable[Any]) -> None:
    """Raise ScanError if more than ALIKE keys have the same hash, TypeError where one has none.

    For lists that a pickle has a set or a dict made of, which ``scan`` cannot tell from other lists.
    """
    hashes = collections.Counter(map(hash, keys))
    if hashes and max(hashes.values()) > ALIKE:
        raise ScanError(f"{max(hashes.values())} keys of a set or dict have the same hash")


@functools.lru_cache(maxsize=None)
def _compiled() -> Callable[..., Any]:
    try:
        import numba

        return numba.njit(cache=True, boundscheck=True)(_walk)
    except (ImportError, RuntimeError) as err:
        told = "it finds no folder to keep it in; set NUMBA_CACHE_DIR to one that can be written"
        reason = err if isinstance(err, ImportError) else told
        logging.getLogger(__name__).warning(
            "the Numba kernel is not available (%s); pickles are scanned slowly", reason
        )
        return _walk


def _walk(data, argument, action, texts, apart, deepest, most, compared):  # type: ignore[no-untyped-def]
    """(problem or 0, place, objects) of the pickle in ``data``. Plain enough for Numba."""
    end, at, marks_used, used, nodes, memorised = len(data), 0, 0, 0, 2, 0
    stack, marks, memo = np.zeros(256, np.int64), np.zeros(64, np.int64), np.full(256, -1, np.int64)
    # node 0 stands for all small values, node 1 for those of them whose hashes differ
    size, depth, fetched = np.ones(256, np.int64), np.zeros(256, np.int64), np.zeros(256, np.bool_)
    # of keys whose hashes may be the same: how many a container has, and their sizes together
    differs, keys, key_sizes = np.zeros(256, np.bool_), np.zeros(256, np.int64), np.zeros(256, np.float64)
    differs[1] = True
    work = 0.0
    while at < end:
        opcode = data[at]
        begin = at
        at += 1
        kind, does = argument[opcode], action[opcode]
        number, content = 0, 0  # a number that follows, little-endian; the length of a text
        if does == _BAD:
            return _BAD_OPCODE, begin, 0
        if kind <= 8:
            if at + kind > end:
                return _SHORT, begin, 0
            if does in (_PUT, _GET):
                for k in range(kind):
                    number += int(data[at + k]) << (8 * k)
            at += kind
        elif kind <= _TWO_LINES:
            for _ in range(kind - 8):
                start = at
                while at < end and data[at] != 10:
                    at += 1
                if at >= end:
                    return _SHORT, begin, 0
                content = at - start
                at += 1
                if not texts[opcode] and content > _LONGEST:
                    return _LONG, begin, 0
            if does in (_PUT, _GET):
                if content == 0 or content > 12:
                    return _MEMO, begin, 0
                for k in range(at - 1 - content, at - 1):
                    digit = int(data[k]) - 48
                    if digit < 0 or digit > 9:
                        return _MEMO, begin, 0
                    number = number * 10 + digit
        else:
            width = 1 if kind == _BY_1 else 4 if kind == _BY_4 else 8
            if at + width > end:
                return _SHORT, begin, 0
            for k in range(min(width, 6)):
                content += int(data[at + k]) << (8 * k)
            for k in range(6, width):
                if data[at + k] != 0:
                    return _SHORT, begin, 0
            at += width
            if content > end - at:
                return _SHORT, begin, 0
            if opcode == 0x8B and content > _LONGEST:
                return _LONG, begin, 0
            at += content

        if used + 2 > len(stack):
            stack = np.concatenate((stack, np.zeros_like(stack)))
        if nodes + 2 > len(size):
            size, depth = np.concatenate((size, np.ones_like(size))), np.concatenate((depth, np.zeros_like(depth)))
            fetched = np.concatenate((fetched, np.zeros_like(fetched)))
            differs = np.concatenate((differs, np.zeros_like(differs)))
            keys = np.concatenate((keys, np.zeros_like(keys)))
            key_sizes = np.concatenate((key_sizes, np.zeros_like(key_sizes)))
        floor = marks[marks_used - 1] if marks_used else 0
        if does == _NONE:
            continue
        if does == _PUSH:
            if content < 64:
                stack[used] = 1 if content <= apart[opcode] else 0
            else:
                size[nodes], depth[nodes], fetched[nodes] = 1 + content // 16, 0, False
                differs[nodes] = content <= apart[opcode]
                stack[used] = nodes
                nodes += 1
            used += 1
        elif does == _MARK:
            if marks_used == len(marks):
                marks = np.concatenate((marks, np.zeros_like(marks)))
            marks[marks_used] = used
            marks_used += 1
        elif does in (_PUT, _MEMOIZE):
            if does == _MEMOIZE:
                number = memorised
            if number > at:  # picklers number entries from 0, and each takes a byte: no index exceeds the position
                return _MEMO, begin, 0
            if used <= floor:
                return _STACK, begin, 0
            while number >= len(memo):
                memo = np.concatenate((memo, np.full(len(memo), -1, np.int64)))
            if memo[number] < 0:
                memorised += 1
            memo[number] = stack[used - 1]
        elif does == _GET:
            if number >= len(memo) or memo[number] < 0:
                return _MEMO, begin, 0
            node = memo[number]
            if node > 1:
                fetched[node] = True
            stack[used] = node
            used += 1
        elif does == _STOP:
            if used <= floor or marks_used:
                return _STACK, begin, 0
            return 0, at, size[stack[used - 1]]
        else:
            taken = 0
            if does in (_NEW_MARK, _ADD_MARK):
                if not marks_used:
                    return _STACK, begin, 0
                taken = used - floor
                marks_used -= 1
                floor = marks[marks_used - 1] if marks_used else 0
            elif does in (_NEW_1, _ADD_1, _DROP_1):
                taken = 1
            elif does in (_NEW_2, _ADD_2, _POP_2_PUSH):
                taken = 2
            elif does == _NEW_3:
                taken = 3
            adds = _ADD_1 <= does <= _ADD_MARK or does == _DROP_1
            if used - taken - (1 if adds else 0) < floor:
                return _STACK, begin, 0
            # d, s and u have a key and a value in turn, sets keys alone
            every = 2 if opcode in (0x64, 0x73, 0x75) else 1 if opcode in (0x90, 0x91) else 0
            total, below, more, more_sizes, first = 0, 0, 0, 0.0, used - taken
            for k in range(first, used):
                total += size[stack[k]]
                below = max(below, depth[stack[k]])
                if total > most:
                    return _SPREAD, begin, 0
                if every and (k - first) % every == 0 and not differs[stack[k]]:
                    more += 1
                    more_sizes += size[stack[k]]
            used -= taken
            if does == _POP_2_PUSH:
                stack[used] = 0
                used += 1
            elif adds:
                node = stack[used - 1]
                if node <= 1:
                    return _STACK, begin, 0
                if does == _DROP_1:
                    continue
                if fetched[node]:
                    return _ITSELF, begin, 0
                size[node] += total
                depth[node] = max(depth[node], below + 1)
                if size[node] > most:
                    return _SPREAD, begin, 0
                if depth[node] > deepest:
                    return _DEEP, begin, 0
            else:
                size[nodes], depth[nodes], fetched[nodes], differs[nodes] = 1 + total, below + 1, False, False
                node = nodes
                if below + 1 > deepest:
                    return _DEEP, begin, 0
                stack[used] = nodes
                nodes += 1
                used += 1
            if more:
                # so many pairs, times the size of a key
                work += (more * key_sizes[node] + (keys[node] + more) * more_sizes) / 2
                keys[node], key_sizes[node] = keys[node] + more, key_sizes[node] + more_sizes
                if work > compared:
                    return _KEYS, begin, 0
    return _SHORT, end, 0
