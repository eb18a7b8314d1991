"""A newcomer's first hour, by the commands of README and of docs/plugins.md as they are written, in a clean folder with a HOME of its own: a server,
the first message on a socket, then a policy of one's own in JavaScript, changed, broken and mended.

usage: tests/kit/first_hour.py path/to/signalpost           from the packages, where no compiler is to be found
       tests/kit/first_hour.py --clone [path/to/repository]  from a clone, with an empty cargo home: many minutes

Each step is timed, and the times are printed, not checked. What differs from the pages is the port, which is any free one.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tutorial

REPOSITORY = Path(__file__).parents[2]
# What a machine has that has no compiler: a shell, what npm needs, and what the pages use.
TOOLS = ["bash", "sh", "env", "uname", "tar", "gzip", "sed", "cat", "ls", "mkdir", "rm", "curl", "node", "npm"]
COMPILERS = ["cargo", "rustc", "cc", "gcc", "c++", "clang"]
BUILD_S_MAX = 3600


def main(*arguments):
    with tempfile.TemporaryDirectory() as folder:
        hour = Hour(Path(folder))
        try:
            if arguments[0] == "--clone":
                hour.clone(Path(arguments[1] if arguments[1:] else REPOSITORY).resolve())
            else:
                hour.unpack(Path(arguments[0]).resolve())
            hour.messages()
            hour.policy()
        finally:
            hour.end()
        seconds = time.monotonic() - hour.begun
    print(f"ok  a server, a message, and a policy that is served, changed, broken and mended: {seconds:.0f} s in all")


def readme(heading):
    """The commands of README up to this heading, in their order."""
    begin = (REPOSITORY / "README.md").read_text(encoding="utf-8").split(heading)[0]
    lines = re.sub(r"\\\n *", "", begin).splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")]


class Hour(tutorial.Walk):
    def __init__(self, folder):
        super().__init__(Path("signalpost"), "js", folder)
        self.home = folder / "home"
        self.home.mkdir()
        # What belongs to a user is in the new HOME; what lets this machine reach the registries stays.
        own = [name for name in self.environment if name.startswith(("XDG_", "CARGO_", "SIGNALPOST_STORE"))]
        for name in own:
            del self.environment[name]
        self.environment |= {"HOME": str(self.home)}
        self.begun = self.before = time.monotonic()

    def timed(self, what):
        """Prints what was done, and the time since the step before."""
        now = time.monotonic()
        print(f"{now - self.before:7.1f} s  {what}", flush=True)
        self.before = now

    def unpack(self, signalpost):
        """Goes README's way with an archive, on a machine without a compiler."""
        with tempfile.TemporaryDirectory() as packages:
            made = subprocess.run([REPOSITORY / "packaging/build", signalpost, packages], capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stdout + made.stderr
            for package in Path(packages).iterdir():
                shutil.copy(package, self.folder)
        tools = self.folder / "bin"
        (tools / "signalpost").unlink()
        for tool in TOOLS:
            (tools / tool).symlink_to(shutil.which(tool))
        self.environment["PATH"] = str(tools)
        found = [tool for tool in COMPILERS if shutil.which(tool, path=str(tools))]
        assert not found, found
        # Whoever downloads the packages has not made them.
        self.begun = self.before = time.monotonic()
        # The Debian package has the same, for those who may install it.
        subprocess.run(["dpkg-deb", "--extract", *self.folder.glob("*.deb"), self.folder / "debian"], check=True)
        self.timed("the Debian package, unpacked into a folder")
        unpack, serve = (command for command in readme("Now let a rider listen") if command.startswith(("tar ", "bin/")))
        archive = next(self.folder.glob("*.tar.gz")).name.removesuffix(".tar.gz")
        unpack = unpack.replace("signalpost-0.1.0-x86_64-linux", archive)
        self.run(unpack)
        self.timed(unpack)
        root = self.folder / archive
        binary, packaged = (file.read_bytes() for file in (root / "bin/signalpost", self.folder / "debian/usr/bin/signalpost"))
        assert binary == packaged, "the packages have different binaries"
        self.serve(serve, root)
        (tools / "signalpost").symlink_to(root / "bin/signalpost")

    def clone(self, repository):
        """Goes README's way with a clone: everything is fetched and compiled."""
        self.environment["RUSTUP_HOME"] = os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup"))
        self.environment["CARGO_HOME"] = str(self.home / ".cargo")
        self.run(f"git clone --quiet --no-hardlinks {repository} signalpost")
        self.timed("git clone")
        self.serve(next(command for command in readme("Now let a rider listen") if command.startswith("cargo run")), self.folder / "signalpost")
        signalpost = self.folder / "bin/signalpost"
        signalpost.unlink()
        signalpost.symlink_to(self.folder / "signalpost/target/release/signalpost")

    def serve(self, command, folder):
        with open(self.folder / "server.log", "w", encoding="utf-8") as output:
            # The words of a command of README; `exec` makes it the server itself.
            words = ["bash", "-c", f"exec {command}"]
            self.running.append(subprocess.Popen(words, cwd=folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT))
        since = time.monotonic()
        while "listening on" not in self.said("server.log"):
            assert self.running[-1].poll() is None and time.monotonic() - since < BUILD_S_MAX, self.said("server.log")
            time.sleep(0.02)
        self.timed(command)

    def messages(self):
        """README's first messages: with the commands, and with curl."""
        listen, send, curl = (command for command in readme("Clients can answer") if command.startswith(("signalpost ", "curl ")))
        self.start(f"{listen} --json --url ws://{self.address}/api/pool", "rider.log")
        self.waits("rider.log", "connected", 1)
        self.timed(listen)
        said = self.run(f"{send} --url http://{self.address}/api/pool")
        assert "2 recipients, 2 posted" in said, said
        self.waits("rider.log", "pooling_match", 1)
        self.timed(f"{send}: the first message")
        said = self.run(curl.replace("127.0.0.1:8080", self.address))
        assert re.search(r'"recipients":2,"posted":2', said), said
        self.waits("rider.log", "pooling_match", 2)
        self.timed(curl)
        self.end()

    def policy(self):
        """The tutorial: a policy of one's own. It is served, changed, broken and mended."""
        for command in tutorial.read():
            self.step(command)
            self.timed(command)
        self.waits("listen.log", tutorial.TEXTS[1], 2)
        self.timed("all messages read")


if __name__ == "__main__":
    main(*sys.argv[1:])
