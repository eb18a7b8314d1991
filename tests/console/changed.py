"""Makes another version of a plugin without a compiler. Usage: changed.py FROM TO says OLD_TEXT NEW_TEXT | changed.py FROM TO traps FUNCTION"""

import sys
from pathlib import Path

CORE_MODULE, CUSTOM, IMPORT, CODE, NAMES, UNREACHABLE = 1, 0, 2, 10, 1, 0


def number(at):
    """Reads an unsigned LEB128, and returns it with where it ends."""
    value = shift = 0
    while True:
        byte = wasm[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def text(at):
    length, at = number(at)
    return bytes(wasm[at : at + length]), at + length


def sections(at, end):
    while at < end:
        kind = wasm[at]
        size, at = number(at + 1)
        yield kind, at, at + size
        at += size


def index_of(name, at, end):
    """Returns the index of the function whose name ends like this, as the name section has it."""
    for kind, at, _ in sections(at, end):
        if kind == NAMES:
            count, at = number(at)
            for _ in range(count):
                index, at = number(at)
                found, at = text(at)
                if found.endswith(name):
                    return index
    raise SystemExit(f"no function's name ends with {name}")


def imported(at):
    """Counts the imports of a core module made of Rust: they are functions."""
    return number(at)[0]


def trap(name):
    """Makes a function of `unreachable` alone."""
    _, start, end = next(section for section in sections(8, len(wasm)) if section[0] == CORE_MODULE)
    parts = {(kind, text(at)[0] if kind == CUSTOM else b""): (at, end) for kind, at, end in sections(start + 8, end)}
    named_at, named_end = parts[CUSTOM, b"name"]
    index = index_of(name, text(named_at)[1], named_end) - imported(parts[IMPORT, b""][0])
    _, at = number(parts[CODE, b""][0])
    for _ in range(index):
        size, at = number(at)
        at += size
    size, at = number(at)
    end = at + size - 1
    groups, at = number(at)
    for _ in range(groups):
        _, at = number(at)
        at += 1
    wasm[at:end] = bytes([UNREACHABLE]) * (end - at)


source, target, how, *rest = sys.argv[1:]
wasm = bytearray(Path(source).read_bytes())
if how == "traps":
    trap(rest[0].encode())
else:
    old, new = (part.encode() for part in rest)
    if len(old) != len(new) or old not in wasm:
        raise SystemExit(f"{source} has no {old}, or the new text has another length")
    wasm = wasm.replace(old, new)
Path(target).write_bytes(wasm)
