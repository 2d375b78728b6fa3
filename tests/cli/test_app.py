"""The command `minip2p app`: what it says, what it refuses, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace

import pytest
from command_line import error_line, run
from paths import ROOT

from minip2p.cli.app import address
from minip2p.unet import UNet
from minip2p.web.server import bind


def test_it_serves_until_it_is_interrupted_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "minip2p", "app", "--port", "0", "--no-browser", "--token", "a1" * 8]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, "env": environment}
    with subprocess.Popen(command, **options) as process:
        line = process.stdout.readline()
        match = re.fullmatch(r"minip2p app: (http://127\.0\.0\.1:\d+)/\?token=(a1a1a1a1a1a1a1a1)\n", line)
        assert match, (line, process.stderr.read())
        assert process.stdout.readline() == "Ctrl-C stops it.\n"
        headers = {"Authorization": f"Bearer {match[2]}", "Content-Type": "application/json"}
        body = json.dumps({"prompt": "a cat", "steps": 100}).encode()
        request = urllib.request.Request(f"{match[1]}/api/generate", body, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            for event in response:
                if b'"step"' in event:
                    break
            process.send_signal(signal.SIGINT)
            rest = response.read().decode()
        output, errors = process.communicate(timeout=60)
    assert rest.splitlines()[-2] == 'data: {"type": "error", "error": "the server stops"}'
    assert (process.returncode, output, errors) == (0, "stopped\n", "")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_port_in_use_is_one_line_before_anything_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("minip2p.cli.app.load_model", lambda args: pytest.fail("loaded"))
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    line = error_line(capsys, "app", "--port", port)
    assert line.startswith(f"--port {port} of 127.0.0.1 cannot be used (") and line.endswith("choose another port")
    listener.close()


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "python_multipart"])
def test_a_missing_package_is_one_line_that_says_what_to_install(package, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.replace("_", "-")
    assert error_line(capsys, "app") == f"the app needs {name}: pip install 'minip2p[web]'"


@pytest.mark.parametrize("token", ["short", "", "a" * 15, "with spaces and more", "ä" * 20, "a/b" * 9])
def test_a_token_that_can_be_guessed_or_does_not_fit_an_address_is_refused(token, capsys):
    assert "--token must have at least 16 letters and digits" in error_line(capsys, "app", f"--token={token}")


def test_the_address_that_is_printed():
    assert address("127.0.0.1", 7860, None) == "http://127.0.0.1:7860/"
    assert address("::1", 80, None) == "http://[::1]:80/"
    assert address("example.org", 80, "t") == "http://example.org:80/?token=t"


@pytest.fixture
def started(model, monkeypatch):
    """A function: the options of the command -> what it opens in the browser. The server ends as soon as it answers."""

    class Server:
        def __init__(self, app, limits, on_start):
            self.on_start = on_start

        def run(self, sockets):
            self.on_start()
            sockets[0].close()

    def start(*arguments):
        opened = []
        monkeypatch.setattr("minip2p.web.server.AppServer", Server)
        monkeypatch.setattr("minip2p.cli.app.load_model", lambda args: model)
        monkeypatch.setattr("minip2p.cli.app.webbrowser.open", opened.append)
        assert run("app", "--port", "0", *arguments) == 0
        for thread in threading.enumerate():
            if thread.name.startswith("browser"):
                thread.join(10)
        return opened

    return start


def test_the_browser_is_opened_unless_told_not_to(started, capsys):
    (opened,) = started()
    assert capsys.readouterr().out == f"minip2p app: {opened}\nCtrl-C stops it.\nstopped\n"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", opened) and started("--no-browser") == []


def test_a_server_for_other_computers_prints_a_token_for_them(started, capsys):
    (opened,) = started("--host", "0.0.0.0")
    first, second, *_ = capsys.readouterr().out.splitlines()
    match = re.fullmatch(r"minip2p app: http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32})", first)
    assert match and first.endswith(opened)
    assert second == f"from other computers: http://{socket.gethostname()}:{match[1]}/?token={match[2]}"


def test_a_model_that_makes_pictures_from_pictures_is_refused(model, capsys, monkeypatch):
    config = replace(model.unet.config, in_channels=2 * model.unet.config.in_channels)
    unet = UNet(config)
    other = replace(model, components=replace(model.components, unet=unet))
    monkeypatch.setattr("minip2p.cli.app.load_model", lambda args: other)
    assert error_line(capsys, "app", "--port", "0").startswith("this model makes a picture from a picture")
