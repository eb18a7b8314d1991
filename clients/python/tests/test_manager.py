"""The bridge: a FastAPI application's sockets, with Signalpost behind them."""

import asyncio
import json
import os
import re
import signal
import subprocess
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import websockets.asyncio.server
from starlette.websockets import WebSocketState

import support
from signalpost import ConnectionManager, Signalpost, manager
from support import App, Server, application, closed, connect, is_silent, receive

pytestmark = pytest.mark.anyio

MATCHED = '{"type":"pooling_match","request_id":42,"status":"matched","details":"You have been matched for a pooling request!"}'


@pytest.fixture(scope="module")
def bridged(tmp_path_factory, server):
    """The application with the shim, under one worker."""
    with App(application(tmp_path_factory.mktemp("app"), support.IMPORTS), {"SIGNALPOST_URL": server.url}) as app:
        yield app
        assert "Traceback" not in app.said(), app.said()


def match(app, rider, driver):
    return asyncio.to_thread(app.post, f"/requests/42/match?rider_id={rider}&driver_id={driver}&pool_id=7")


async def test_all_devices_of_the_rider_and_the_driver_read_the_match_and_nobody_else(bridged):
    async with connect(bridged.port, 1091) as phone, connect(bridged.port, 1091) as tablet, connect(bridged.port, 1092) as driver:
        async with connect(bridged.port, 1093) as stranger:
            await match(bridged, 1091, 1092)
            assert [await receive(client) for client in (phone, tablet, driver)] == [MATCHED] * 3
            for client in (phone, tablet, driver, stranger):
                await is_silent(client)


async def test_a_late_disconnect_of_one_device_leaves_the_others(bridged, server):
    phone = await connect(bridged.port, 1101)
    tablet = await connect(bridged.port, 1101)
    assert server.sessions(1101) == 2
    await phone.close()
    await asyncio.to_thread(server.waits_for_sessions, 1101, 1)
    await match(bridged, 1101, 1102)
    assert await receive(tablet) == MATCHED
    # The newest may go first, too.
    phone = await connect(bridged.port, 1101)
    await tablet.close()
    await asyncio.to_thread(server.waits_for_sessions, 1101, 1)
    await match(bridged, 1101, 1102)
    assert await receive(phone) == MATCHED
    await phone.close()
    await asyncio.to_thread(server.waits_for_sessions, 1101, 0)


async def test_a_message_for_a_user_who_is_away_is_read_by_the_next_socket_once(bridged):
    await match(bridged, 1201, 1202)
    async with connect(bridged.port, 1201) as rider:
        assert await receive(rider) == MATCHED
        await is_silent(rider)
    async with connect(bridged.port, 1201) as rider:
        await is_silent(rider)


async def test_messages_pass_digit_by_digit(bridged, server):
    deep = "[" * 5000 + "]" * 5000
    texts = ['{"a": 1.10, "b":123456789012345678901234567890,"c":1E400}', '"grüße \\u00e9"', "null", "[]", '{"data":{"seq":1}}', deep]
    async with connect(bridged.port, 1301) as client:
        for text in texts:
            request = support.urllib.request.Request(f"{server.url}/users/1301/messages", text.encode(), {"content-type": "application/json"})
            with await asyncio.to_thread(support.urllib.request.urlopen, request):
                assert await receive(client) == text


def test_an_envelope_is_unwrapped():
    assert manager.unwrap('{"seq":42,"type":"message","data":{"a":[1,"}"]}}') == (42, '{"a":[1,"}"]}')
    assert manager.unwrap('{"seq":42,"type":"message","data":"x"}') == (42, '"x"')
    assert manager.unwrap('{"seq":7,"type":"message","data_base64":"AP8="}') == (7, b"\x00\xff")
    for control in ("hello", "resume", "reconnect", "error"):
        assert manager.unwrap(f'{{"type":"{control}","data":{{"seq":1}}}}')[0] is None


async def test_session_attributes_are_passed_on(bridged, server):
    async with connect(bridged.port, "1401?format=compact&locale=de") as compact, connect(bridged.port, 1401) as plain:
        async with Signalpost(server.url) as signalpost:
            await signalpost.publish("pooling.match.found", {"request_id": 42, "rider_id": 1401, "driver_id": 1402, "pool_id": 7})
        short, long = await receive(compact), await receive(plain)
    assert long.startswith(MATCHED[:-1])
    assert len(short) < len(long) and "type" not in json.loads(short)


async def test_a_session_that_signalpost_ends_closes_the_socket_with_its_code_and_reason(bridged, server):
    client = await connect(bridged.port, 1501)
    await asyncio.to_thread(server.ask, "/users/1501/sessions", "DELETE")
    assert await closed(client) == (4200, "ended by the operator")
    clients = [await connect(bridged.port, 1502) for _ in range(9)]
    assert await closed(clients[0]) == (4202, "replaced by a newer session")
    for client in clients:
        await client.close()


async def test_a_restart_of_signalpost_closes_sockets_with_1012_and_a_lost_one_with_1013(tmp_path):
    first = await asyncio.to_thread(Server)
    with first, App(application(tmp_path, support.IMPORTS), {"SIGNALPOST_URL": first.url}) as app:
        client = await connect(app.port, 1)
        assert await asyncio.to_thread(first.stop) == 0
        assert await closed(client) == (1012, "server restarts, reconnect")
        # There is no server now: the handshake succeeds, so that a browser can read the code.
        client = await connect(app.port, 1)
        assert await closed(client) == manager.LOST
        with await asyncio.to_thread(Server, first.port) as second:
            client = await connect(app.port, 1)
            await match(app, 1, 2)
            assert await receive(client) == MATCHED
            second.kill()
            assert await closed(client) == manager.LOST
        assert "Traceback" not in app.said(), app.said()
        assert "user 1 gets no session at http://127.0.0.1" in app.said(), app.said()


async def test_tokens_are_passed_on_and_a_user_without_one_is_closed_with_4205(tmp_path):
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    config = tmp_path / "users.toml"
    config.write_text(f'[auth.users]\nalgorithms = ["HS256"]\nkey_files = ["{tmp_path / "secret"}"]\ntoken_in_query = true\nfirst_frame_deadline_ms = 500\n')
    made = subprocess.run([support.BINARY, "token", "1", "--config", config], check=True, capture_output=True, text=True)
    token = made.stdout.strip()
    with Server(config=str(config)) as server, App(application(tmp_path, support.IMPORTS), {"SIGNALPOST_URL": server.url}) as app:
        async with (
            connect(app.port, 1, additional_headers={"Authorization": f"Bearer {token}"}) as header,
            connect(app.port, f"1?access_token={token}") as query,
        ):
            await match(app, 1, 2)
            assert await receive(header) == await receive(query) == MATCHED
        for user, headers in ((2, {"Authorization": f"Bearer {token}"}), (1, {"Authorization": "Bearer x"}), (1, {})):
            client = await connect(app.port, user, additional_headers=headers)
            assert await closed(client) == (4205, "no valid token")
        assert "Traceback" not in app.said(), app.said()


async def test_an_endpoint_that_is_busy_while_its_socket_is_closed_sees_a_disconnection(tmp_path, server):
    source = application(tmp_path, support.IMPORTS) / "main.py"
    text = source.read_text()
    busy = text.replace("            await websocket.receive_text()", "            print(await websocket.receive_text())\n            await asyncio.sleep(1)")
    busy = busy.replace("        manager.disconnect(user_id)", "        manager.disconnect(user_id)\n        print('disconnected', user_id)")
    assert busy.count("asyncio.sleep") == busy.count("'disconnected'") == 1
    source.write_text("import asyncio\n" + busy)
    with App(tmp_path, {"SIGNALPOST_URL": server.url}) as app:
        client = await connect(app.port, 1601)
        await client.send("hello")
        await asyncio.to_thread(app.waits, "hello")
        await asyncio.to_thread(server.ask, "/users/1601/sessions", "DELETE")
        assert await closed(client) == (4200, "ended by the operator")
        await asyncio.to_thread(app.waits, "disconnected 1601")
        assert "Traceback" not in app.said(), app.said()


def open_files(pid):
    """Returns how many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))



async def test_a_worker_that_is_killed_loses_no_message(tmp_path, server):
    with App(application(tmp_path, support.IMPORTS), {"SIGNALPOST_URL": server.url}, support.UVICORN) as app:
        workers = [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", app.said())]
        assert len(workers) == 2
        before = [open_files(pid) for pid in workers]
        clients = {}
        # The kernel chooses who takes a connection: on a busy machine one worker may have many in a row.
        for user in range(1701, 1901):
            clients[user] = await connect(app.port, user)
            if len(clients) >= 20 and all(open_files(pid) > count for pid, count in zip(workers, before)):
                break
        os.kill(workers[0], signal.SIGKILL)
        # Their sockets are gone at once, since the system closes them.
        await asyncio.wait({asyncio.create_task(client.wait_closed()) for client in clients.values()}, timeout=1)
        lost = [user for user, client in clients.items() if client.close_code is not None]
        assert 0 < len(lost) < len(clients), "sockets of one worker are gone"
        await asyncio.to_thread(app.waits, r"(?s)" + "Application startup complete.*" * 3)
        for user in clients:
            await match(app, user, 1799)
        for user in lost:
            clients[user] = await connect(app.port, user)
        for client in clients.values():
            assert await receive(client) == MATCHED
        await asyncio.gather(*(is_silent(client) for client in clients.values()))
        for client in clients.values():
            await client.close()


# --- with sockets that fail at will ---


class Socket:
    """A socket as the manager sees it."""

    def __init__(self, fails=()):
        self.fails = fails
        self.url = SimpleNamespace(query="")
        self.headers = {}
        self.application_state = self.client_state = WebSocketState.CONNECTED
        self.sent = asyncio.Queue()
        self.end = asyncio.get_running_loop().create_future()

    async def accept(self):
        if "accept" in self.fails:
            raise RuntimeError("the client is gone")

    async def send_text(self, text):
        if "send_text" in self.fails:
            raise RuntimeError("the client is gone")
        self.sent.put_nowait(text)

    async def close(self, code, reason):
        self.end.set_result((code, reason))


async def test_a_message_that_cannot_be_passed_on_is_kept_for_the_next_socket(server):
    shim = ConnectionManager(server.url)
    gone, next_one = Socket(fails={"send_text"}), Socket()
    await shim.connect(gone, 1801)
    await shim.send_personal_message({"n": 1}, 1801)
    assert await asyncio.wait_for(gone.end, support.SOON_S) == manager.LOST
    await asyncio.to_thread(server.waits_for_sessions, 1801, 0)
    async with asyncio.timeout(support.SOON_S):
        # The session ends at the server a moment before the class knows of that.
        while shim.active_connections:
            await asyncio.sleep(0.01)
    await shim.connect(next_one, 1801)
    assert await asyncio.wait_for(next_one.sent.get(), support.SOON_S) == '{"n":1}'
    shim.disconnect(1801)
    await asyncio.to_thread(server.waits_for_sessions, 1801, 0)
    await shim.signalpost.aclose()


async def test_a_client_that_is_gone_before_it_is_accepted_leaves_no_session(server):
    shim = ConnectionManager(server.url)
    with pytest.raises(RuntimeError, match="the client is gone"):
        await shim.connect(Socket(fails={"accept"}), 1802)
    await asyncio.to_thread(server.waits_for_sessions, 1802, 0)
    assert shim.active_connections == {}


async def test_messages_reach_a_socket_from_the_moment_that_connect_returns(server):
    shim = ConnectionManager(server.url)
    for user in range(1810, 1830):
        socket = Socket()
        await shim.connect(socket, user)
        # Only for users who are connected.
        assert (await shim.signalpost.tell(user, 1, keep_ms=0)).posted == 1
        assert await asyncio.wait_for(socket.sent.get(), support.SOON_S) == "1"
        shim.disconnect(user)
        await asyncio.to_thread(server.waits_for_sessions, user, 0)
    await shim.signalpost.aclose()


@asynccontextmanager
async def upstream(behaves):
    """Yields a manager whose Signalpost behaves as it is told once a socket is open."""

    async def handle(session):
        await behaves(session)

    async with websockets.asyncio.server.serve(handle, "127.0.0.1", 0, subprotocols=["signalpost.v1"]) as fake:
        yield ConnectionManager(f"http://127.0.0.1:{fake.sockets[0].getsockname()[1]}/api/pool")


async def test_a_socket_is_accepted_after_the_hello(monkeypatch):
    happened = []

    async def late(session):
        happened.extend([json.loads(await session.recv()), json.loads(await session.recv())])
        await asyncio.sleep(0.3)
        happened.append("hello")
        await session.send('{"type":"hello","data":{}}')
        await session.wait_closed()

    class Noted(Socket):
        async def accept(self):
            happened.append("accepted")

    async with upstream(late) as shim:
        await shim.connect(Noted(), 1)
        # The resume says to begin at once, and the ack that only acks count, from the first message on.
        assert happened == [{"type": "ack", "seq": 0}, {"type": "resume"}, "hello", "accepted"]
        shim.disconnect(1)

    async def never(session):
        await session.wait_closed()

    monkeypatch.setattr(manager, "OPEN_DEADLINE_S", 0.3)
    async with upstream(never) as shim:
        await asyncio.wait_for(shim.connect(Noted(), 1), support.SOON_S)
        shim.disconnect(1)


@pytest.mark.parametrize(
    ("behaviour", "end"),
    [
        ({"code": 4203, "reason": "not today"}, (4203, "not today")),
        ({"code": 1000, "reason": ""}, (1000, "")),
        ({"code": 1011, "reason": "a policy failed"}, (1011, "a policy failed")),
        (None, manager.LOST),
    ],
)
async def test_a_session_that_is_refused_after_the_handshake_ends_the_socket_with_its_code(behaviour, end):
    async def refuses(session):
        if behaviour is None:
            session.transport.abort()
        else:
            await session.close(**behaviour)

    async with upstream(refuses) as shim:
        socket = Socket()
        await shim.connect(socket, 1)
        assert await asyncio.wait_for(socket.end, support.SOON_S) == end


async def test_a_client_that_reads_slowly_gets_all_and_holds_up_nobody(bridged, server):
    text = "x" * 100_000
    async with connect(bridged.port, 1901, max_queue=1) as slow, connect(bridged.port, 1902) as other, Signalpost(server.url) as signalpost:
        # Less than a mailbox holds.
        for number in range(9):
            assert (await signalpost.tell(1901, [number, text])).posted == 1
        await signalpost.tell(1902, "quick")
        assert await receive(other) == '"quick"'
        assert [json.loads(await receive(slow))[0] for _ in range(9)] == list(range(9))
        await is_silent(slow)


async def test_a_client_that_stopped_reading_is_told_the_code_when_it_reads_again():
    async def loses_patience(session):
        await session.send('{"type":"hello","data":{}}')
        await session.send('{"seq":1,"type":"message","data":"first"}')
        await session.close(4100, "slow consumer")

    class Stuck(Socket):
        async def send_text(self, text):
            await reads.wait()
            await super().send_text(text)

    reads = asyncio.Event()
    async with upstream(loses_patience) as shim:
        socket = Stuck()
        await shim.connect(socket, 1)
        await asyncio.sleep(support.NEVER_S)
        assert socket.sent.empty() and not socket.end.done()
        reads.set()
        assert await asyncio.wait_for(socket.end, support.SOON_S) == (4100, "slow consumer")
        assert socket.sent.get_nowait() == '"first"'


async def test_an_application_that_stops_closes_its_sockets_and_sessions(tmp_path, server):
    with App(application(tmp_path, support.IMPORTS), {"SIGNALPOST_URL": server.url}) as app:
        client = await connect(app.port, 1951)
        await asyncio.to_thread(app.stop)
        assert (await closed(client))[0] == 1012
        await asyncio.to_thread(server.waits_for_sessions, 1951, 0)
        assert "Traceback" not in app.said() and "destroyed" not in app.said(), app.said()


async def test_the_arguments_of_connect_may_have_either_order(server):
    shim = ConnectionManager(server.url)
    first, second = Socket(), Socket()
    await shim.connect(first, 1803)
    await shim.connect(1804, second)
    assert shim.active_connections == {1803: first, 1804: second}
    for user in (1803, 1804):
        shim.disconnect(user)
        await asyncio.to_thread(server.waits_for_sessions, user, 0)
    await asyncio.gather(*(bridge.relay for bridge in list(shim._bridges)), return_exceptions=True)
    assert shim.active_connections == {}


async def test_disconnect_works_from_a_thread_and_for_a_user_who_is_not_there(server):
    shim = ConnectionManager(server.url)
    shim.disconnect(1805)
    await shim.connect(Socket(), 1805)
    await asyncio.to_thread(shim.disconnect, 1805)
    await asyncio.to_thread(server.waits_for_sessions, 1805, 0)


async def test_disconnect_finds_the_socket_that_is_gone_also_when_another_task_had_connected_it(server):
    shim = ConnectionManager(server.url)
    gone, open_one = Socket(), Socket()
    for socket in (gone, open_one):
        await asyncio.create_task(shim.connect(socket, 1807))
    gone.client_state = WebSocketState.DISCONNECTED
    shim.disconnect(1807)
    await asyncio.to_thread(server.waits_for_sessions, 1807, 1)
    await shim.send_personal_message(1, 1807)
    assert await asyncio.wait_for(open_one.sent.get(), support.SOON_S) == "1" and gone.sent.empty()
    # If none is gone, the user is meant.
    shim.disconnect(1807)
    await asyncio.to_thread(server.waits_for_sessions, 1807, 0)
    await shim.signalpost.aclose()


async def test_a_message_that_the_server_drops_is_logged(server, caplog, monkeypatch):
    shim = ConnectionManager(server.url)
    receipt = await shim.signalpost.tell(1806, 1, keep_ms=0)
    assert [dropped.reason for dropped in receipt.dropped] == ["away"]

    async def tell(user, message):
        return receipt

    monkeypatch.setattr(shim.signalpost, "tell", tell)
    await shim.send_personal_message({}, 1806)
    assert "a message to user 1806 was dropped: away" in caplog.text
    await Signalpost.aclose(shim.signalpost)
