"""Who may talk to the local server: only who knows the address that was printed, only from this machine.

Every address asks for the token, in the query (the printed address) or in the cookie that the first page leaves. A page
of another origin cannot read our answers (no CORS headers), its POSTs carry its own Origin, and a name that somebody
else's DNS points at 127.0.0.1 is not among the hosts we answer to.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "font-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Guard:
    """ASGI middleware that answers 401 without the token, 403 to strangers and 405 to whatever is no question.

    Args:
        token: the secret in the printed address.
        port: the server's, which its Host header must name.
        writable: the addresses that take a POST.
    """

    def __init__(self, app: ASGIApp, *, token: str, port: int, writable: tuple[str, ...] = ()) -> None:
        self.app, self.token, self.writable = app, token, writable
        self.cookie = f"scanfield_view_{port}"
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here: the connection is closed
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["Content-Security-Policy"] = POLICY
                answer["X-Content-Type-Options"] = "nosniff"
                answer["Referrer-Policy"] = "no-referrer"
                answer["Cross-Origin-Resource-Policy"] = "same-origin"
                # Scripts and styles carry a hash of their content in their names; everything else is the user's.
                lasting = scope["path"].startswith("/assets/")
                answer["Cache-Control"] = "private, max-age=31536000, immutable" if lasting else "no-store"
                if scope["path"] == "/":
                    answer.append("Set-Cookie", f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        await self.app(scope, receive, hardened)

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self.hosts:
            return PlainTextResponse("this server answers to this machine only", 403)
        if origin is not None and origin != f"http://{host}":
            return PlainTextResponse("no other page may ask here", 403)
        if not self._knows(scope, headers):
            return PlainTextResponse("the token is missing or wrong: open the address that scanfield printed", 401)
        method = scope["method"]
        if method not in ("GET", "HEAD") and not (method == "POST" and scope["path"].endswith(self.writable)):
            return PlainTextResponse("this server only shows", 405)
        return None

    def _knows(self, scope: Scope, headers: Headers) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            morsel = None
        given += [morsel.value] if morsel is not None else []
        return any(hmac.compare_digest(text.encode("latin-1", "replace"), self.token.encode()) for text in given)
