"""Who may ask the page's server: the page itself, on this machine, with its token."""

import hmac
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of all answers: no script or style but the page's own files, nothing from elsewhere, no framing, nothing kept."""

HERE = ("127.0.0.1", "localhost")

Scope = MutableMapping[str, Any]


class Guard:
    """Refuses requests of other sites, under other names, and without the token; adds `HEADERS` to all answers.

    Another site's page in the same browser can send requests here, but says its own origin and knows no token. A site
    whose name leads to this machine (DNS rebinding) is betrayed by the name.

    Args:
        app: What answers.
        token: Needed for everything under ``/api/``, in the header ``X-Token`` or as ``?token=``.
        port: Where the server listens.
    """

    def __init__(self, app: Callable[..., Any], token: str, port: int):
        self.app, self.token = app, token.encode()
        self.hosts = {f"{name}:{port}" for name in HERE} | ({*HERE} if port == 80 else set())

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answers a request."""

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                replaced = {name for name, _ in own}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in replaced]
                message = {**message, "headers": [*kept, *own]}
            await send(message)

        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        answer = self.app if (wrong := self._wrong(scope)) is None else JSONResponse({"error": wrong}, 403)
        await answer(scope, receive, send_with_headers)

    def _wrong(self, scope: Scope) -> str | None:
        """Why a request is refused; None where it is not."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if host not in self.hosts:
            return f"this server answers at {' and '.join(sorted(self.hosts))} only"
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1") not in {f"http://{name}" for name in self.hosts}:
            return "another site's page must not ask this server"
        if scope["path"].startswith("/api/"):
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            given = headers.get(b"x-token") or asked.encode()
            if not hmac.compare_digest(given, self.token):
                return "the token is missing or wrong: open the address that `composer page` printed"
        return None
