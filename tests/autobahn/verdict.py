"""Reads the suite's reports: which cases failed, and which ended without the close code that they call for."""

import collections
import json
import pathlib
import sys

reports = pathlib.Path(sys.argv[1])
cases = json.loads((reports / "index.json").read_text())["signalpost"]
verdicts = collections.Counter(case["behavior"] for case in cases.values())
print(len(cases), "cases:", ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))

wrong = []
codes = collections.Counter()
for name, case in cases.items():
    report = json.loads((reports / case["reportfile"]).read_text())
    code = report["remoteCloseCode"]
    codes[code] += 1
    if case["behavior"] not in ("OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED"):
        wrong.append(f"{name} is {case['behavior']}: {report['result']}")
    elif case["behaviorClose"] not in ("OK", "INFORMATIONAL"):
        wrong.append(f"{name} closed {case['behaviorClose']}: {report['resultClose']}")
    # The suite takes a connection that just ends for a refusal, of which a client learns nothing. 7.3.1 closes without a code, and is
    # answered without one.
    elif code is None and name != "7.3.1":
        wrong.append(f"{name} ended without a close frame: {report['description']}")
    # Which codes are right is compared here as well, and not left to what the suite makes of an unclean end.
    elif code is not None and case["behaviorClose"] == "OK" and (right := report["expectedClose"].get("closeCode")) and code not in right:
        wrong.append(f"{name} closed with {code}, and {right} would be right: {report['description']}")
print("close codes:", ", ".join(f"{count} times {code}" for code, count in sorted(codes.items(), key=str)))
print("\n".join(wrong))
sys.exit(bool(wrong) or len(cases) < 500)
