"""Receives what a sink sends. Start it with `SINK_SECRETS=whsec_… uvicorn sink:app`."""

import os

from fastapi import FastAPI, HTTPException, Request

from signalpost import InvalidWebhook, verify

app = FastAPI()
# Separated by spaces: while a secret is being replaced, there are two.
secrets = os.environ["SINK_SECRETS"].split()
# A sink sends a webhook again until it is answered. With several workers this belongs into the database, in the transaction that handles it.
handled: set[str] = set()


@app.post("/signalpost", status_code=204)
async def receive(request: Request) -> None:
    try:
        webhook = verify(request.headers, await request.body(), secrets)
    except InvalidWebhook as reason:
        raise HTTPException(401, str(reason)) from reason
    if webhook.id in handled:
        return
    print("received", webhook.json(), flush=True)
    handled.add(webhook.id)
