"""A network that fails: what stands between one node and the NATS servers."""

import asyncio
import contextlib

CHUNK_BYTES = 64 << 10
# No test of ours needs a connection to be made in less.
CONNECT_S = 5


class Proxy:
    """Passes one node's connections on to the NATS servers, and fails as a network does."""

    def __init__(self, targets):
        self.targets, self.listeners, self.connections = targets, [], set()
        self.is_cut = False
        # What each direction waits for. Nothing that is on its way is lost, as in TCP.
        self.to_nats, self.to_node = asyncio.Event(), asyncio.Event()
        self.join()

    async def start(self):
        """Returns the ports, one for each NATS server."""
        for target in self.targets:
            self.listeners.append(await asyncio.start_server(lambda *streams, target=target: self.serve(target, *streams), "127.0.0.1", 0))
        return [listener.sockets[0].getsockname()[1] for listener in self.listeners]

    def end(self):
        for listener in self.listeners:
            listener.close()
        self.reset()

    def cut(self):
        """Ends all connections, and lets none be made."""
        self.is_cut = True
        self.reset()

    def stall(self):
        """Lets nothing pass, and keeps connections open."""
        self.to_nats.clear()
        self.to_node.clear()

    def deafen(self):
        """Lets nothing come from NATS, while what the node says gets there."""
        self.to_node.clear()

    def half_open(self):
        """Ends all connections so that only the NATS servers learn of it. New ones can be made."""
        for connection in list(self.connections):
            connection.lose_nats()

    def join(self):
        """Lets everything pass again."""
        self.is_cut = False
        self.to_nats.set()
        self.to_node.set()

    def reset(self):
        for connection in list(self.connections):
            connection.reset()

    async def serve(self, target, reader, writer):
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                nats = await asyncio.open_connection("127.0.0.1", target)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        connection = Proxied((reader, writer), nats)
        self.connections.add(connection)
        try:
            await asyncio.gather(connection.to_nats(self.to_nats), connection.to_node(self.to_node))
        except asyncio.CancelledError:
            # The program ends.
            return
        finally:
            self.connections.discard(connection)
            connection.reset()


class Proxied:
    def __init__(self, node, nats):
        self.node, self.nats, self.is_lost = node, nats, False

    def reset(self):
        for _, writer in (self.node, self.nats):
            writer.transport.abort()

    def lose_nats(self):
        self.is_lost = True
        self.nats[1].transport.abort()

    async def to_nats(self, passes):
        await self.pump(self.node[0], self.nats[1], passes)

    async def to_node(self, passes):
        await self.pump(self.nats[0], self.node[1], passes)

    async def pump(self, reader, writer, passes):
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await passes.wait()
                # What is sent on a connection that only one side knows to be over is lost.
                if not self.is_lost:
                    writer.write(data)
                    await writer.drain()
        if self.is_lost and reader is self.nats[0]:
            return
        writer.transport.abort()
