"""What the server refuses: each point of its security is a test."""

import re

import pytest
from starlette.testclient import TestClient
from web import BASE, error

from minip2p.web.app import STATIC, make_app
from minip2p.web.guard import Access, error_response
from minip2p.web.limits import Limits

POSTS = ("photo", "settings", "align", "generate", "edit", "invert", "grid")
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def guarded(pipe):
    """A client of a server that needs a token."""
    with TestClient(make_app(pipe, Access.to("0.0.0.0", TOKEN)), base_url=BASE) as client:
        yield client


# --- names and origins


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.0.1",
        "",
        "a b",
        "[::2]",
        "127.0.0.1, a",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/model", "/static/index.html", "/nothing"])
def test_another_name_for_this_computer_is_refused(client, host, path):
    """A domain that points to 127.0.0.1 (DNS rebinding) has its own name in the Host header."""
    assert "name" in error(client.get(path, headers={"Host": host}), 400)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:7860", "localhost:80", "LOCALHOST", "[::1]:7860"])
def test_the_names_of_this_computer_are_answered(client, host):
    assert client.get("/api/model", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1234"},
        {"Origin": "http://localhost:7860"},  # another name than that of the request
        {"Origin": "http://127.0.0.1:7860.evil.example"},
        {"Origin": "http://127.0.0.1:7860/"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_pages_of_other_sites_cannot_send_anything(client, post, headers):
    assert "another site" in error(client.post(f"/api/{post}", json={}, headers=headers), 403)


def test_pages_of_other_sites_cannot_read_anything_but_may_link_to_the_page(client, cat):
    """A browser sends no Origin where a person follows a link, but says that it navigates."""
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    for path in ("/", "/api/model", "/static/app.js", cat["picture"]):
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            assert "another site" in error(client.get(path, headers=headers), 403)
        assert client.get(path, headers={"Origin": BASE.upper(), "Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_other_methods_of_other_sites_are_refused_too(client):
    for method in ("DELETE", "PUT", "PATCH", "OPTIONS"):
        error(client.request(method, "/api/model", headers={"Origin": "https://evil.example"}), 403)
        error(client.request(method, "/api/model"), 405)


def test_the_page_itself_can_send(client):
    body = {"source": "a cat", "target": "a dog"}
    for headers in ({"Origin": BASE}, {"Sec-Fetch-Site": "same-origin"}, {}):
        assert client.post("/api/align", json=body, headers=headers).status_code == 200


def test_there_is_no_cors(client):
    preflight = {"Origin": BASE, "Access-Control-Request-Method": "POST"}
    for response in (
        client.options("/api/generate", headers=preflight),
        client.get("/api/model", headers={"Origin": "https://evil.example"}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


# --- bodies


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/jsonp"]
)
def test_forms_of_other_sites_are_no_json(client, content_type):
    """A form of another site may send these types without asking."""
    headers = {"Content-Type": content_type}
    response = client.post("/api/generate", content='{"prompt": "a cat"}', headers=headers)
    assert "application/json" in error(response, 415)


def test_a_json_request_is_no_upload(client):
    for post in ("photo", "settings"):
        assert "multipart/form-data" in error(client.post(f"/api/{post}", json={}), 415)


@pytest.fixture(scope="module")
def small(pipe):
    """A client of a server with small limits."""
    limits = Limits(json_bytes=1000, photo_bytes=5000, photo_pixels=100, body_seconds=0.3, queue=0)
    with TestClient(make_app(pipe, limits=limits), base_url=BASE) as client:
        yield client


def chunks(size):
    """A body that arrives in pieces and does not say how long it is."""
    for _ in range(size // 100):
        yield b" " * 100


def test_a_body_that_says_it_is_too_large_is_refused_unread(small):
    headers = {"Content-Type": "application/json"}
    for length in ("1001", "9" * 5000, "-1", "x"):
        response = small.post("/api/generate", content=b"{}", headers={**headers, "Content-Length": length})
        assert "0.001 MB are the most" in error(response, 413) and response.headers["connection"] == "close"


def test_a_body_that_does_not_say_its_length_is_refused_too(small):
    headers = {"Content-Type": "application/json"}
    assert "too large" in error(small.post("/api/generate", content=chunks(2000), headers=headers), 413)
    assert "cannot be read as JSON" in error(small.post("/api/generate", content=chunks(900), headers=headers), 400)
    assert "too large" in error(small.get("/api/model", headers={"Content-Length": "2000"}), 413)


@pytest.mark.parametrize("post", ["photo", "settings"])
def test_the_parts_of_a_form_are_limited(small, post):
    """Starlette limits the fields of a form, but not its files."""
    assert "too large" in error(small.post(f"/api/{post}", files={"file": bytes(6000)}), 413)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}

    def endless():
        yield head
        yield from chunks(6000)

    assert "too large" in error(small.post(f"/api/{post}", content=endless(), headers=headers), 413)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"--x\r\n", b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'],
)
def test_broken_forms_are_one_line(small, content):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    error(small.post("/api/photo", content=content, headers=headers), 400)
    error(small.post("/api/photo", content=content, headers={"Content-Type": "multipart/form-data"}), 400)


def test_a_form_has_exactly_a_file(small):
    assert "Too many" in error(small.post("/api/photo", files=[("file", b"a"), ("file", b"b")]), 400)
    assert "Too many" in error(small.post("/api/photo", data={"a": "b"}, files={"file": b"a"}), 400)
    assert "no file" in error(small.post("/api/photo", files={"picture": b"a"}), 400)


# --- ids, files, text


@pytest.mark.parametrize(
    "path",
    ["run/x/picture.png", "run/x/maps", "run/x/run.safetensors", "run/x/recipe", "run/x/animation.gif", "photo/x.png"],
)
def test_only_ids_of_the_server_exist(client, path):
    assert "there is no such" in error(client.get(f"/api/{path}"), 404)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "http://evil.example/x", "x" * 10_000])
def test_no_path_and_no_address_is_read(client, name):
    error(client.post("/api/edit", json={"run": name, "target": "a cat"}), 404)
    error(client.post("/api/invert", json={"photo": name[:40], "prompt": "a cat"}), 404)
    for field in ("model", "path", "url", "file"):
        error(client.post("/api/generate", json={"prompt": "a cat", field: name}), 400)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/..%5capp.py",
        "/app.py",
        "/static/",
        "/api/model/",
    ],
)
def test_only_files_of_the_page_are_served(client, path):
    error(client.get(path), 404)


def test_every_answer_says_what_browsers_may_do_with_it(client):
    responses = [client.get("/"), client.get("/api/model"), client.get("/nothing"), client.post("/api/edit", json={})]
    responses.append(client.get("/", headers={"Host": "evil.example"}))
    for response in responses:
        policy = response.headers["content-security-policy"]
        assert "default-src 'self';" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert re.search("img-src 'self' data: blob:;", policy)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "server" not in response.headers
        assert response.headers["cache-control"] == "no-store"


def test_the_page_inserts_no_text_as_html_and_asks_nobody_else():
    files = [file for file in STATIC.iterdir() if file.suffix in (".js", ".html", ".css")]
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file
        )
        if file.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", text), f"{file}: the policy forbids it"
        links = re.findall(r"""(?:src|href|url|import|fetch)\W+(https?://[^"'\s)]+)""", text)
        assert not [link for link in links if "www.w3.org" not in link and "github.com/minip2p" not in link], file


def test_an_error_is_one_line():
    assert error_response(400, "a\n b").body == b'{"error":"a b"}'


def test_a_bug_is_one_line_too(pipe, monkeypatch, caplog):
    app = make_app(pipe)
    monkeypatch.setattr(app.state.site, "facts", {"unknown": object()})
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        assert error(client.get("/api/model"), 500) == "the server has failed (TypeError); its terminal says more"


# --- who may use it


def test_only_this_computer_needs_no_token():
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert Access.to(host).token is None
    for host in ("0.0.0.0", "192.168.0.7", "::", "example.org"):
        assert len(Access.to(host).token) == 32  # 192 bits
        assert Access.to(host).token != Access.to(host).token
    assert Access.to("127.0.0.1", TOKEN).token == Access.to("0.0.0.0", TOKEN).token == TOKEN


def test_a_server_for_others_may_be_called_by_its_addresses_but_not_by_foreign_names():
    access = Access.to("0.0.0.0")
    for host in ("192.168.0.7:7860", "[fe80::1]", "localhost", access.names[0]):
        assert access.allows_host(host), host
    assert not access.allows_host("evil.example") and not access.allows_host(None)
    assert Access.to("example.org").allows_host("example.org:7860")


def test_without_the_token_nothing_is_answered(guarded):
    for path in ("/", "/api/model", "/static/index.html", "/nothing"):
        assert "token" in error(guarded.get(path), 401)
    error(guarded.post("/api/align", json={"source": "a", "target": "b"}), 401)
    wrong = [{"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ä"}, {"Authorization": ""}]
    wrong += [{"Cookie": f"minip2p-7860={TOKEN}x"}, {"Cookie": "minip2p-7860="}, {"Cookie": "a=b; ]["}]
    for headers in wrong:
        headers = {name: value.encode() for name, value in headers.items()}
        error(guarded.get("/api/model", headers=headers), 401)
    error(guarded.get("/?token=wrong"), 401)
    error(guarded.post(f"/api/align?token={TOKEN}", json={}), 401)


def test_the_first_visit_with_the_token_gives_a_cookie(guarded):
    response = guarded.get(f"/?token={TOKEN}", follow_redirects=False)
    assert response.status_code == 303 and response.headers["location"] == "/"  # the address loses the token
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie
    assert guarded.get("/api/model").status_code == 200  # with the cookie
    guarded.cookies.clear()
    error(guarded.get("/api/model"), 401)


def test_programs_may_show_the_token_in_a_header(guarded):
    assert guarded.get("/api/model", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
