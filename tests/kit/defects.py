"""What an exception of a policy and hostile data become, in a project that `plugin new` has made for routing: the fault report has the
exception's message, or says what to use instead of what is not there, and data that would take too long to read are refused.

usage: tests/kit/defects.py path/to/signalpost path/to/project rust|js|python|c
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

# A line that fails, the line before which it is put, and the words of the report. In Rust the SDK reports panics; C has no exceptions.
DEFECTS = {
    "rust": ("src/lib.rs", "let shipped: Shipped", 'if self.text == "fail" { panic!("no such wording") }', "no such wording"),
    "js": ("policy.js", "const data = members(", 'if (settings.text === "fail") settings.wording.text;', "cannot read property 'text' of undefined"),
    "python": ("policy.py", "data = members(", 'settings["wording"] if settings["text"] == "fail" else None', "KeyError: 'wording'"),
}
# What each language's own library can't do here, and the words of the report.
MISSING = {
    "js": {
        "clock": ("Date.now();", "trap", "use that, or the event's `time`"),
        "monotonic": ("performance.now();", "trap", "use that, or the event's `time`"),
        "console": ('console.log("x");', "panic", "console is not defined: use the interface `log`"),
    },
    "python": {
        "clock": ("__import__('time').time()", "trap", "use that, or the event's `time`"),
        "import": ("__import__('uuid')", "trap", "there are no files"),
        "print": ("print('x', flush=True)", "trap", "use the interface `log`"),
        "random": ("__import__('os').urandom(4)", "trap", "use the event's `id`"),
        "file": ("open('/x')", "trap", "there are no files"),
    },
}
CONDITIONS = {"js": 'if (settings.text === "{}") {}', "python": 'if settings["text"] == "{}": {}'}
# Whether each language reads a large event at all is its own affair; none of them fails.
TOO_MUCH = {
    "many values": [1] * 8_000,
    "many members": {f"{member:x}": 1 for member in range(20_000)},
    "a long text": "x" * 200_000,
    "escapes": "\u0001" * 2_600,
}
DEEP = "[" * 290 + "]" * 290


def main(signalpost, project, language):
    signalpost, project, missing = Path(signalpost).resolve(), Path(project), MISSING.get(language, {})
    if language in DEFECTS:
        file, before, failing, words = DEFECTS[language]
        source = (project / file).read_text(encoding="utf-8")
        assert source.count(before) == 1, f"{language}: {file} has no line {before!r}"
        failing += "".join(f"\n        {CONDITIONS[language].format(name, calls)}" for name, (calls, _, _) in missing.items())
        (project / file).write_text(source.replace(before, f"{failing}\n        {before}"), encoding="utf-8")
    shutil.rmtree(project / "fixtures")
    (project / "fixtures").mkdir()
    if language in DEFECTS:
        fixture(project, "defect", "{}", {"text": "fail"})
    for name in missing:
        fixture(project, name, "{}", {"text": name})
    for about, total in TOO_MUCH.items():
        fixture(project, about, json.dumps(total))
    fixture(project, "deep", DEEP)
    said = subprocess.run([signalpost, "plugin", "test", project], capture_output=True, text=True, check=False)
    # Each fixture expects what never comes, so that each outcome is told.
    lines = (said.stdout + said.stderr).splitlines()
    for name in [path.stem for path in (project / "fixtures").glob("*.json")]:
        at = next((at for at, line in enumerate(lines) if f"/{name}.json: " in line), None)
        assert at is not None, f"{language}: nothing is told of {name}: {lines}"
        outcome = lines[at + 1]
        if name == "defect":
            assert '"kind":"panic"' in outcome and words in outcome, f"{language}: {outcome}"
        elif name in missing:
            _, kind, says = missing[name]
            assert f'"kind":"{kind}"' in outcome and says in outcome, f"{language}: {name}: {outcome}"
        else:
            assert "faults" not in outcome, f"{language}: {name}: {outcome[:300]}"
    reported = f"a defect is reported, and so are {len(missing)} calls of what is not there; " if missing else "a defect is reported, and " if language in DEFECTS else ""
    print(f"ok  {language}: {reported}{len(TOO_MUCH) + 1} ways of too much data are no fault")


def fixture(project, name, total, settings=None):
    step = '{"event":{"type":"order.shipped","data":{"order_id":7,"user_id":1001,"total":%s}},"refuses":{"code":"x","detail":"x"}}' % total
    text = '{"about":"%s","settings":%s,"steps":[%s]}' % (name, json.dumps(settings or {}), step)
    (project / "fixtures" / f"{name}.json").write_text(text, encoding="utf-8")


main(*sys.argv[1:])
