"""A server as a user starts it, and Chromium on its page."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from browser import set_value
from paths import ROOT

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# The second to last line: without them Chromium asks other hosts.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def server():
    """The address of `minip2p app`."""
    command = [sys.executable, "-m", "minip2p", "app", "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    line = process.stdout.readline()
    match = re.search(r"http://\S+", line)
    assert match, f"no address in {line!r}"
    yield match[0]
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright  # `make test` collects these tests, and does not run them

    assert CHROMIUM, "these tests need Chromium: install it, or name it in the variable CHROMIUM"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def is_answer(message):
    """Whether Chromium reports an answer that the page tells: a request that is refused, or a run that is forgotten."""
    is_forgotten = "status of 404" in message.text and "/api/" in message.location["url"]
    return is_forgotten or "status of 400" in message.text


@pytest.fixture
def new_page(browser):
    """Opens an address in a page of its own. At the end nothing may have gone wrong in it, or left its server."""
    contexts, problems = [], []

    def open_page(address, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        origin = re.match(r"https?://[^/]+", address)[0]
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: m.type == "error" and not is_answer(m) and problems.append(m.text))
        page.on("request", lambda r: r.url.startswith(("data:", "blob:", origin)) or problems.append(r.url))
        page.goto(address)
        page.wait_for_selector("#about:not(:empty)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture
def page(server, new_page):
    """The page with few steps."""
    opened = new_page(server)
    set_value(opened, "#steps", 4)
    set_value(opened, "#photo-steps", 4)
    return opened
