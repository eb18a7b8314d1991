"""What a policy in Python needs beside its own rules: JSON that keeps every digit, ids, and a report of what goes wrong."""

import functools
import json
import re
import traceback
from dataclasses import dataclass

from componentize_py_types import Err
from wit_world.imports import diagnostics
from wit_world.imports.types import Body_Json, Refusal

# Reading more would take a call longer than it may (limits.call_deadline_ms), or more stack than it has.
JSON_CHARS_MAX = 16_384
JSON_VALUES_MAX = 300
JSON_DEPTH_MAX = 64

# What the server takes by default: sockets.user_id_bytes_max, groups.name_bytes_max.
ID_BYTES_MAX = 128
NAME_BYTES_MAX = 128

ID = "an id: a whole number, or a string, of 1 to 128 bytes, without control characters and without blanks at its ends"


def reporting(interface):
    """Wraps the functions of an interface. An `Err` is an answer; any other exception is a defect, whose message goes into the server's
    fault report."""

    def wrap(call):
        @functools.wraps(call)
        def wrapped(*given):
            try:
                return call(*given)
            except Err:
                raise
            except BaseException as defect:
                diagnostics.panicked(f"{type(defect).__name__}: {defect}{place_of(defect)}")
                raise

        return wrapped

    for name, call in list(vars(interface).items()):
        if callable(call) and not name.startswith("_"):
            setattr(interface, name, wrap(call))
    return interface


def place_of(defect: BaseException) -> str:
    """Where it was raised. `traceback` would look for the source, and there are no files here."""
    frames = traceback.walk_tb(defect.__traceback__)
    return "".join(f"\n    at {frame.f_code.co_name} ({frame.f_code.co_filename}:{line})" for frame, line in frames)


def refusal(code: str, detail: str) -> Err:
    """The producer finds a refusal that is raised in the receipt."""
    return Err(Refusal(code, detail))


@dataclass(frozen=True)
class Number:
    """A number as it was written: `write` writes each digit again, `id_of` and `number_of` read it."""

    digits: str


def parse(body):
    """Reads the JSON of a body; `None` if it has none, or too much."""
    if not isinstance(body, Body_Json) or is_too_much(body.value):
        return None
    return json.loads(body.value, parse_int=Number, parse_float=Number)


def members(body) -> dict:
    """Reads the members of an event's data, or refuses what is not an object."""
    if isinstance(body, Body_Json) and is_too_much(body.value):
        most = f"{JSON_CHARS_MAX} characters, {JSON_VALUES_MAX} values, or {JSON_DEPTH_MAX} of them in each other"
        raise refusal("invalid_data", f"the event's data has more than {most}")
    data = parse(body)
    if not isinstance(data, dict):
        raise refusal("invalid_data", "the event's data should be a JSON object")
    return data


def is_too_much(text: str) -> bool:
    if len(text) > JSON_CHARS_MAX:
        return True
    # Every other piece between quotes is a string, when no quote is escaped any more.
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    # Each value follows one of these marks, but for the first.
    if sum(map(outside.count, ",[{")) > JSON_VALUES_MAX:
        return True
    depth = deepest = 0
    for bracket in re.findall("[][{}]", outside):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest > JSON_DEPTH_MAX


def write(value) -> str:
    """Writes JSON."""
    if isinstance(value, Number):
        return value.digits
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{write(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    return json.dumps(value)


def required(data: dict, name: str):
    if name not in data:
        raise refusal("missing_field", f"`{name}` is missing")
    return data[name]


def id_of(data: dict, name: str) -> str:
    """Reads the id of a user or the like: the number 1001 is the user "1001"."""
    value = required(data, name)
    if isinstance(value, Number) and re.fullmatch("0|-?[1-9][0-9]*", value.digits) and len(value.digits) <= ID_BYTES_MAX:
        return value.digits
    is_id = is_text(value) and 0 < size(value) <= ID_BYTES_MAX and value.strip() == value
    if is_id and not re.search("[\x00-\x1f\x7f-\x9f]", value):
        return value
    raise refusal("invalid_field", f"`{name}` should be {ID}")


def prefixed(prefix: str, identity: str, name: str) -> str:
    """Makes the name of a group, or a collapse key, of an id: `prefixed("pool:", id_of(data, "pool_id"), "pool_id")`."""
    most = NAME_BYTES_MAX - size(prefix)
    if size(identity) > most:
        raise refusal("invalid_field", f"`{name}` has {size(identity)} bytes: it should have at most {most}")
    return prefix + identity


def number_of(data: dict, name: str) -> float:
    """Reads a number to calculate with."""
    value = required(data, name)
    if not isinstance(value, Number):
        raise refusal("invalid_field", f"`{name}` should be a number")
    return float(value.digits)


def is_text(value) -> bool:
    """Says whether this is a string that can be sent: JSON may have halves of surrogate pairs, which UTF-8 has no bytes for."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def size(text: str) -> int:
    """The length in UTF-8."""
    return len(text.encode())
