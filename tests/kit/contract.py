"""The policy of docs/languages.md, in one language: it builds as the page has it, and does what the page's fixture says.

usage: tests/kit/contract.py path/to/signalpost path/to/project rust|js|python|c

The project is one that `plugin new` has made for routing, with its tools. It is copied.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/languages.md"
SOURCES = {"rust": "src/lib.rs", "js": "policy.js", "python": "policy.py", "c": "policy.c"}
# The page says so, and a new project has the line as a comment.
IMPORT = "import signalpost:policy/state@0.1.0;"


def main(signalpost, project, language):
    signalpost, project = Path(signalpost).resolve(), Path(project).resolve()
    page = PAGE.read_text(encoding="utf-8")
    assert IMPORT in page
    # Beside the project, so that its relative paths hold.
    with tempfile.TemporaryDirectory(dir=project.parent) as folder:
        visits = Path(folder) / "visits"
        shutil.copytree(project, visits, symlinks=True)
        shutil.rmtree(visits / "fixtures")
        (visits / "fixtures").mkdir()
        (visits / "fixtures/visits.json").write_text(block(page, "json"), encoding="utf-8")
        (visits / SOURCES[language]).write_text(block(page, language), encoding="utf-8")
        world = visits / "wit/world.wit"
        if world.exists():
            text = world.read_text(encoding="utf-8")
            assert f"// {IMPORT}" in text, text
            world.write_text(text.replace(f"// {IMPORT}", IMPORT), encoding="utf-8")
        said = subprocess.run([signalpost, "plugin", "test", visits], capture_output=True, text=True, check=False)
        assert said.returncode == 0 and "imports state" in said.stdout, f"{language}: {said.stdout}{said.stderr}"
    print(f"ok  {language}: the policy of docs/languages.md builds, and does what the page says")


def block(page, language):
    found = re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)
    assert len(found) == 1, f"docs/languages.md has {len(found)} blocks of {language}"
    return found[0]


main(*sys.argv[1:])
