"""Who may talk to the local server."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from scanfield.view.guard import Guard

TOKEN = "a-secret"
HOST = "http://127.0.0.1:8000"


@pytest.fixture
def client() -> TestClient:
    async def answer(request: object) -> PlainTextResponse:
        return PlainTextResponse("in")

    routes = [Route(path, answer, methods=["GET", "POST", "DELETE"]) for path in ("/", "/data", "/item/stop")]
    guard = Middleware(Guard, token=TOKEN, port=8000, writable=("/stop",))
    return TestClient(Starlette(routes=routes, middleware=[guard]), base_url=HOST)


@pytest.mark.parametrize("path", ["/", "/data", "/nowhere", "/data?token=", "/?token=a-secre", "/?token=A-secret"])
def test_without_the_token_every_address_refuses(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 401 and "token" in answer.text and "set-cookie" not in answer.headers


def test_the_first_page_leaves_a_cookie_that_opens_the_rest(client: TestClient) -> None:
    page = client.get(f"/?token={TOKEN}")
    assert page.status_code == 200
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "scanfield_view_8000" in cookie
    assert client.get("/data").text == "in"


def test_a_cookie_of_another_port_or_with_another_value_opens_nothing(client: TestClient) -> None:
    for cookie in (f"scanfield_view_8001={TOKEN}", "scanfield_view_8000=wrong", "scanfield_view_8000=é", ";;=,"):
        answer = client.get("/data", headers={"cookie": cookie.encode("utf-8")})  # type: ignore[dict-item]
        assert answer.status_code == 401


def test_other_hosts_and_origins_are_strangers_even_with_the_token(client: TestClient) -> None:
    path = f"/data?token={TOKEN}"
    assert client.get(path, headers={"host": "evil.example:8000"}).status_code == 403
    assert client.get(path, headers={"host": "127.0.0.1:9000"}).status_code == 403
    assert client.get(path, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get(path, headers={"origin": "http://localhost:8000"}).status_code == 403  # not the page's own host
    assert client.get(path, headers={"origin": HOST}).status_code == 200
    assert client.get(path, headers={"host": "localhost:8000"}).status_code == 200


def test_only_stop_takes_more_than_questions(client: TestClient) -> None:
    assert client.post(f"/data?token={TOKEN}").status_code == 405
    assert client.delete(f"/item/stop?token={TOKEN}").status_code == 405
    assert client.post(f"/item/stop?token={TOKEN}").status_code == 200


def test_answers_cannot_be_framed_sniffed_or_cached(client: TestClient) -> None:
    headers = client.get(f"/data?token={TOKEN}").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers
