"""What the documentation says is what happens: docs/migrate.md step by step, and README's own code."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import websockets

import signalpost
import support
from support import EVENTS, IMPORTS, PAGE, PROXY, App, Process, Server, application, connect, receive, section

pytestmark = pytest.mark.anyio

PACKAGE = support.ROOT / "clients/python"
MATCHED = '{"type":"pooling_match","request_id":42,"status":"matched","details":"You have been matched for a pooling request!"'
PAGE_ORIGIN = "https://app.example.com"


async def works(app, port, **options):
    """Checks that rider and driver read a match at this port, and returns what they read."""
    async with connect(port, 901, **options) as rider, connect(port, 902, **options) as driver:
        await asyncio.to_thread(app.post, "/requests/42/match?rider_id=901&driver_id=902&pool_id=7")
        frames = [await receive(rider), await receive(driver)]
    assert all(frame.startswith(MATCHED) for frame in frames), frames
    return frames


async def test_where_it_begins_works_with_one_worker(tmp_path):
    with App(application(tmp_path)) as app:
        assert await works(app, app.port) == [MATCHED + "}"] * 2


async def test_the_first_step_changes_one_line_and_no_frame(tmp_path, server):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir(), after.mkdir()
    lines = [(application(folder, *titles) / "main.py").read_text().splitlines() for folder, titles in ((before, ()), (after, (IMPORTS,)))]
    assert sum(old != new for old, new in zip(*lines, strict=True)) == 1
    with App(after, {"SIGNALPOST_URL": server.url}, support.UVICORN) as app:
        assert await works(app, app.port) == [MATCHED + "}"] * 2


def nginx(folder, application, server):
    """Starts nginx with the page's configuration, on a free port."""
    port = support.free_port()
    [text] = [text for language, _, text in section(PROXY) if language == "nginx"]
    for written, used in (("listen 80;", f"listen 127.0.0.1:{port};"), ("127.0.0.1:8080", f"127.0.0.1:{server.port}"), ("127.0.0.1:8000", f"127.0.0.1:{application.port}")):
        assert text.count(written) == 1, written
        text = text.replace(written, used)
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = folder / "nginx.conf"
    config.write_text(f"daemon off; pid {folder}/pid; error_log stderr notice;\nevents {{}}\nhttp {{ access_log off;\n{temporary}{text}}}\n")
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    process = Process([os.environ["NGINX"], "-p", str(folder), "-c", str(config), *user])
    process.port = port
    process.waits("start worker process ")
    return process


@pytest.mark.parametrize("titles", [(IMPORTS, PROXY), (IMPORTS, PROXY, EVENTS)], ids=["the second step", "the third step"])
async def test_behind_the_proxy_clients_read_the_same_and_the_application_has_no_sockets(tmp_path, titles):
    [command] = support.commands(PROXY)
    assert command == f"SIGNALPOST_AUTH_ORIGINS={PAGE_ORIGIN} signalpost serve"
    (tmp_path / "nginx").mkdir()
    with Server(auth_origins=PAGE_ORIGIN) as server:
        with App(application(tmp_path, *titles), {"SIGNALPOST_URL": server.url}, support.UVICORN) as app, nginx(tmp_path / "nginx", app, server) as proxy:
            assert "websocket" not in (tmp_path / "main.py").read_text().lower()
            frames = await works(app, proxy.port, origin=PAGE_ORIGIN)
            if EVENTS in titles:
                assert [json.loads(frame)["pool_id"] for frame in frames] == [7, 7]
            else:
                assert frames == [MATCHED + "}"] * 2
            # An app on a phone has no origin.
            async with connect(proxy.port, 901) as rider, connect(proxy.port, 902):
                await asyncio.to_thread(app.post, "/requests/43/match?rider_id=901&driver_id=902&pool_id=8")
                assert json.loads(await receive(rider))["request_id"] == 43
                # The event has an id of its own, so the same match is published once.
                await asyncio.to_thread(app.post, "/requests/43/match?rider_id=901&driver_id=902&pool_id=8")
                await (support.is_silent if EVENTS in titles else receive)(rider)
            with pytest.raises(websockets.InvalidStatus, match="403"):
                await connect(proxy.port, 1, origin="https://evil.example.com")
            # The addresses of producers are not the proxy's.
            with pytest.raises(support.urllib.error.HTTPError, match="404"):
                await asyncio.to_thread(App.post, proxied(proxy), "/api/pool/events")


def proxied(proxy):
    app = App.__new__(App)
    app.url = f"http://127.0.0.1:{proxy.port}"
    return app


def test_the_page_names_the_default_address_and_how_the_client_is_installed():
    assert support.commands(IMPORTS) == ["signalpost serve", "pip install ./clients/python"]
    assert signalpost.client.URL in PAGE


def test_the_shim_has_at_most_150_lines():
    assert len((PACKAGE / "src/signalpost/manager.py").read_text().splitlines()) <= 150


async def test_readmes_examples_run():
    blocks = re.findall(r"^```python\n(.*?)^```$", (PACKAGE / "README.md").read_text(), re.M | re.S)
    publishing, streaming, receiving = blocks
    with Server() as server, Process([sys.executable, "-c", publishing], environment={"SIGNALPOST_URL": server.url}) as example:
        async with connect(server.port, 1001) as rider:
            frames = [await receive(rider), await receive(rider)]
        assert await asyncio.to_thread(example.process.wait, support.SOON_S) == 0, example.said()
        first, second = example.said().splitlines()
    assert first == "2 recipients" and second.startswith("refused: `rider_id` is missing")
    assert json.loads(frames[0])["type"] == "pooling_match" and frames[1] == '{"type":"welcome"}'
    with Server() as server, Process([sys.executable, "-c", streaming], environment={"SIGNALPOST_URL": server.url}) as example:
        assert await asyncio.to_thread(example.process.wait, support.SOON_S) == 0, example.said()
        assert example.said() == "500 posted\n"
    assert receiving.strip() in (PACKAGE / "examples/sink.py").read_text()


def test_types_are_strict():
    installed = Path(signalpost.__file__).parent
    assert (installed / "py.typed").exists()
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "--python-version", "3.11", str(PACKAGE / "src/signalpost")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
