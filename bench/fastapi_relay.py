"""What one writes first: a relay on FastAPI and httpx. It runs in a venv of its own."""

import os

import httpx

# Not in our venv, so not known to mypy.
from fastapi import FastAPI, Request  # type: ignore[import-not-found]
from fastapi.responses import StreamingResponse  # type: ignore[import-not-found]

app = FastAPI()
client = httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None))


async def relay(request: Request) -> StreamingResponse:
    """Send it up, and pass each read of the answer on."""
    url = f"{os.environ['UPSTREAM']}/chat/completions"
    headers = {"content-type": "application/json", "authorization": "Bearer sk-bench"}
    sent = client.build_request("POST", url, content=await request.body(), headers=headers)
    answer = await client.send(sent, stream=True)
    kept = {"content-type": answer.headers["content-type"]}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, kept)


app.add_api_route("/v1/chat/completions", relay, methods=["POST"])
