"""MLflow's model server on 127.0.0.1, with limits: bad requests get an answer, and none of them can end it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

from simtrail.errors import InputError

AT_ONCE = 4  # requests that are read and answered at a time; others wait, unread
SECONDS = 60  # that a request may take to arrive


def serve(answer: Callable[[Any], Any], port: int, limit: int) -> None:
    """Serves POST /invocations on 127.0.0.1 until it is stopped; a request has at most `limit` bytes.

    `answer` takes what MLflow makes of the JSON of a request; its InputErrors are the answer with status 400.
    """
    import uvicorn

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"--port {port}: {error.strerror}; choose another") from None
    uvicorn.run(app(answer, limit), host="127.0.0.1", port=port, log_level="warning")


def app(answer: Callable[[Any], Any], limit: int) -> Any:
    """The application: MLflow's own, within limits."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
    from mlflow.pyfunc import PyFuncModel, scoring_server

    class Refused(MlflowException):
        """An answer that does not repeat the request, which may be large."""

        def serialize_as_json(self) -> str:
            return json.dumps({"error_code": self.error_code, "message": str(self.__cause__)})

    class Answers:
        def predict(self, inputs: Any) -> Any:
            try:
                return answer(inputs)
            except InputError as error:
                raise Refused("refused", INVALID_PARAMETER_VALUE) from error

    served = scoring_server.init(PyFuncModel(Model(), Answers()))
    served.add_middleware(Bounded, limit=limit)
    return served


class Bounded:
    """An ASGI application within limits: size and number of the requests that are in memory, and time to arrive."""

    def __init__(self, inner: Any, limit: int):
        self.inner, self.limit = inner, limit
        self.slots = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.inner(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if b"content-type" not in headers:
            await _refuse(send, 415, "a request needs the header Content-Type: application/json")
        elif int(headers.get(b"content-length", 0)) > self.limit:
            await _refuse(send, 413, f"a request must have at most {self.limit} bytes; send fewer images at a time")
        else:
            async with self.slots:
                await self._answer(scope, receive, send)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            body = await asyncio.wait_for(self._read(receive), SECONDS)
        except TimeoutError:
            return await _refuse(send, 408, f"the request did not arrive within {SECONDS} seconds")
        if body is None:
            return await _refuse(send, 413, f"a request must have at most {self.limit} bytes")

        async def whole() -> dict[str, Any]:
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body, "more_body": False}, None
            return message

        try:
            await self.inner(scope, whole, send)
        except Exception as error:  # whatever the parser did not expect, such as very deep lists
            await _refuse(send, 400, f"the request can't be read: {type(error).__name__}")

    async def _read(self, receive: Any) -> bytes | None:
        """The body; None if it is too large."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.limit:
                return None
        return b"".join(parts)


async def _refuse(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"message": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
