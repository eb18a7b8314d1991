"""The WebSocket part of the ride-pooling backend as Signalpost found it: a FastAPI ConnectionManager, with the addresses that the load needs."""

import json

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse


class ConnectionManager:
    def __init__(self):
        self.active_connections: dict[str, WebSocket] = {}

    async def connect(self, user_id: str, websocket: WebSocket):
        await websocket.accept()
        self.active_connections[user_id] = websocket

    def disconnect(self, user_id: str):
        self.active_connections.pop(user_id, None)

    async def send_personal_message(self, message: dict, user_id: str):
        websocket = self.active_connections.get(user_id)
        if websocket is not None:
            await websocket.send_json(message)


app = FastAPI()
manager = ConnectionManager()
pools: dict[str, dict[str, None]] = {}


@app.websocket("/api/pool/ws/{user_id}")
async def connect(websocket: WebSocket, user_id: str):
    await manager.connect(user_id, websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        manager.disconnect(user_id)


@app.post("/api/pool/users/{user_id}/messages", status_code=202)
async def tell(user_id: str, message: dict):
    await manager.send_personal_message(message, user_id)
    return {"posted": 1}


@app.post("/api/pool/events")
async def publish(request: Request):
    events = json.loads(await request.body())
    posted = 0
    for event in events if isinstance(events, list) else [events]:
        data = event["data"]
        if event["type"] == "pooling.match.found":
            readers = dict.fromkeys([data["rider_id"], data["driver_id"]])
            pools.setdefault(data["pool_id"], {}).update(readers)
        elif event["type"] == "pooling.match.cancelled":
            readers = pools.pop(data["pool_id"], {})
        else:
            readers = pools.get(data["pool_id"], {})
        for user_id in list(readers):
            await manager.send_personal_message(data, user_id)
        posted += len(readers)
    return JSONResponse({"posted": posted}, status_code=202)
