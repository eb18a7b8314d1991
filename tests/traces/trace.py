"""One trace, from a producer in Python to the write at a reader's socket, as OpenTelemetry's own classes decode it."""

import asyncio
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request

import websockets
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# What must come comes within this time, also on a busy machine.
SOON_S = 30

received = []
arrived = threading.Condition()


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        with arrived:
            received.append((self.path, dict(self.headers), request))
            arrived.notify_all()
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def start(signalpost, plugins, port):
    environment = os.environ | {
        "SIGNALPOST_STORE_DURABILITY": "memory",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=rides",
        "OTEL_SERVICE_NAME": "pooling",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    command = [signalpost, "serve", "--listen", "127.0.0.1:0", "--plugins", plugins]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+/[a-z/]*)", line)
        if found:
            # Nobody reads the rest, but the pipe must not fill.
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, found.group(1)
    raise SystemExit("the server does not listen")


def publish(address, headers):
    event = {"specversion": "1.0", "id": "e1", "source": "/python", "type": "pooling.match.found"}
    event["data"] = {"request_id": 42, "rider_id": "1001", "driver_id": "2002", "pool_id": "p1"}
    headers |= {"Content-Type": "application/cloudevents+json"}
    request = urllib.request.Request(f"{address}/events", json.dumps(event).encode(), headers)
    with urllib.request.urlopen(request, timeout=SOON_S) as response:
        assert response.status == 202, response.status


def spans():
    resources = [resource for _, _, request in received for resource in request.resource_spans]
    return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


def wait_for(count):
    with arrived:
        if not arrived.wait_for(lambda: len(spans()) >= count, SOON_S):
            raise SystemExit(f"{count} spans do not come: {[span.name for span in spans()]}")


async def check(address):
    tracer = TracerProvider().get_tracer("producer")
    async with websockets.connect(f"{address.replace('http', 'ws', 1)}/ws/1001") as reader:
        with tracer.start_as_current_span("match riders", kind=SpanKind.PRODUCER) as own:
            headers = {}
            TraceContextTextMapPropagator().inject(headers)
            await asyncio.to_thread(publish, address, headers)
        message = json.loads(await asyncio.wait_for(reader.recv(), SOON_S))
        assert message["type"] == "pooling_match", message
    # The driver is away.
    await asyncio.to_thread(wait_for, 3)
    return own.get_span_context()


def tree(spans, parent, depth=0):
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        if span.parent_span_id == parent:
            took_us = (span.end_time_unix_nano - span.start_time_unix_nano) / 1000
            print(f"    {'  ' * depth}{span.name} ({took_us:.0f} µs)")
            tree(spans, span.span_id, depth + 1)


def main(signalpost, plugins):
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    server, address = start(signalpost, plugins, collector.server_port)
    try:
        own = asyncio.run(check(address))
    finally:
        server.terminate()
        server.wait(SOON_S)
    assert server.returncode == 0, server.returncode

    path, headers, request = received[0]
    assert (path, headers.get("x-tenant")) == ("/v1/traces", "rides"), (path, headers)
    resource = {pair.key: pair.value.string_value for pair in request.resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("pooling", "test"), resource
    found = spans()
    assert [span.name for span in sorted(found, key=lambda span: span.start_time_unix_nano)] == [
        "POST /api/pool/events", "route pooling", "send pooling.match.found"], found
    assert all(span.trace_id == own.trace_id.to_bytes(16, "big") for span in found)
    root = next(span for span in found if span.parent_span_id == own.span_id.to_bytes(8, "big"))
    assert all(span.parent_span_id == root.span_id for span in found if span is not root)
    now = time.time_ns()
    assert all(now - 120 * 10**9 < span.start_time_unix_nano <= span.end_time_unix_nano <= now for span in found)
    print("ok  traces: one trace from a Python producer to the write at a reader's socket, in OpenTelemetry's own decoder:")
    print("    match riders (the producer's)")
    tree(found, own.span_id.to_bytes(8, "big"), 1)


main(*sys.argv[1:])
