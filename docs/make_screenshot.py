"""Takes the picture of the page in the README: python docs/make_screenshot.py [FILE]

It needs the extra `browser`, and Chromium, which the variable CHROMIUM may name.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FILE = Path(__file__).resolve().parent / "_static/app.png"
SIZE = {"width": 1200, "height": 1220}


def use(page: Page) -> None:
    """A car, where its word looks, and its edit within that word."""
    page.fill("#prompt", "a red car on the street")
    page.fill("#seed", "5")
    page.click("#form-generate button[type=submit]")
    page.wait_for_selector("#source-view .inspector select")
    page.locator("#source-view .word").get_by_text("car", exact=True).click()
    page.fill("#target", "a blue car on the street")
    page.get_by_text("Words are exchanged").wait_for()
    page.click("#limits summary")
    page.locator("#blend-words button").get_by_text("car", exact=True).click()
    page.click("#form-edit button[type=submit]")
    page.wait_for_selector("#edit-view .inspector select")
    page.get_by_label("Left and right picture").fill("36")
    page.mouse.move(2, 2)
    page.evaluate("() => scrollTo(0, 0)")


def main() -> None:
    command = [sys.executable, "-m", "minip2p", "app", "--no-browser", "--port", "0"]
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.set_default_timeout(300_000)
        page.goto(address[0])
        use(page)
        page.wait_for_timeout(1000)  # for scrolling and transitions
        page.screenshot(path=sys.argv[1] if len(sys.argv) > 1 else FILE)
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
