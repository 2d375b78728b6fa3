"""Names on the hub, against a small server on this machine: first load, cached, offline, broken off, missing, wrong."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from families import single

from minip2p.checkpoints.hub import PARTS, files_to_download, is_repo_id
from minip2p.io.files import shipped_weights

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    str(path.relative_to(shipped_weights("tiny"))): path
    for path in shipped_weights("tiny").rglob("*")
    if path.is_file()
}


class Hub(ThreadingHTTPServer):
    """Serves the model that ships as org/tiny. asked: what was asked for. breaks: files of which half is sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked, self.breaks, self.files = [], set(), dict(FILES)

    @property
    def downloads(self):
        return [name for method, name in self.asked if method == "GET" and not name.startswith("api/")]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/"):
            self.server.asked.append((self.command, path))
            if path.startswith("api/models/org/private"):
                self.send(b"{}", 403, X_Error_Code="GatedRepo")
                return self.wfile.write(b"{}")
            if not re.match(r"api/models/org/tiny($|/)", path):
                body = json.dumps({"error": "Repository not found"}).encode()
                self.send(body, 404, X_Error_Code="RepoNotFound", Content_Type="application/json")
                return self.wfile.write(body)
            said = {
                "id": "org/tiny",
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": name} for name in self.server.files],
            }
            if "/tree/" in path:
                said = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                    for name, file in self.server.files.items()
                ]
            body = json.dumps(said).encode()
            self.send(body, Content_Type="application/json")
            return self.wfile.write(body)
        name = path.removeprefix("org/tiny/resolve/").split("/", 1)[1]
        self.server.asked.append((self.command, name))
        if name not in self.server.files:
            return self.send(b"", 404, X_Error_Code="EntryNotFound")
        body = self.server.files[name].read_bytes()
        first = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        etag = hashlib.sha256(body).hexdigest()
        more = {"Content_Range": f"bytes {first}-{len(body) - 1}/{len(body)}"} if first else {}
        self.send(
            body[first:], 206 if first else 200, ETag=f'"{etag}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes", **more
        )
        if self.command == "GET":
            half = name in self.server.breaks
            self.wfile.write(body[first : (first + len(body)) // 2] if half else body[first:])
            if half:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def load(hub, home, name="org/tiny", more=None, code="print(m.dtype, len(m.unet.sites))", by=""):
    """What a process of its own prints that loads a model by its name, or as the argument `by` ("vae="); or its error's
    class and line."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        **(more or {}),
    }
    says = f"""
import sys, minip2p
try:
    m = minip2p.load({by}{name!r})
    {code}
except Exception as error:
    print(type(error).__name__, str(error))
"""
    home.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", says], env=env, capture_output=True, text=True, timeout=120, cwd=home)
    return done.stdout.strip()


def test_a_model_is_downloaded_once_and_then_taken_from_the_cache_and_offline(hub, tmp_path):
    hub.files |= {
        "unet/diffusion_pytorch_model.fp16.safetensors": FILES["vae/config.json"],
        "unet/diffusion_pytorch_model.bin": FILES["vae/config.json"],
        "README.md": FILES["vae/config.json"],
        "big.ckpt": FILES["vae/config.json"],
    }
    first = load(hub, tmp_path)
    assert first == "torch.float32 14", first
    assert sorted(hub.downloads) == sorted(FILES)  # and none of the others
    hub.asked.clear()
    assert load(hub, tmp_path) == first and not hub.downloads
    hub.asked.clear()
    assert load(hub, tmp_path, more={"HF_HUB_OFFLINE": "1"}) == first and not hub.asked
    hub.shutdown()
    hub.server_close()
    assert load(hub, tmp_path) == first  # the hub cannot be reached


def test_offline_without_a_cache_is_one_clear_line(hub, tmp_path):
    said = load(hub, tmp_path, more={"HF_HUB_OFFLINE": "1"})
    assert said.startswith("ValueError org/tiny: no such folder, not in the hub's cache, and the hub cannot be reached")
    assert "\n" not in said and not hub.asked


def test_a_download_that_breaks_off_is_one_clear_line_and_is_gone_on_with(hub, tmp_path):
    name = "unet/diffusion_pytorch_model.safetensors"
    hub.breaks.add(name)
    said = load(hub, tmp_path)
    assert said.startswith("ValueError org/tiny: the download broke off; tried again, it goes on")
    assert "\n" not in said
    assert load(hub, tmp_path, more={"HF_HUB_OFFLINE": "1"}) != "torch.float32 14"
    hub.breaks.clear()
    assert load(hub, tmp_path) == "torch.float32 14"


def test_a_repository_without_a_file_is_one_clear_line(hub, tmp_path):
    del hub.files["unet/diffusion_pytorch_model.safetensors"]
    said = load(hub, tmp_path)
    assert said.startswith("FileNotFoundError") and "diffusion_pytorch_model.safetensors: no such file" in said


@pytest.mark.parametrize(
    "name, says",
    [
        ("org/other", "org/other: no such folder, and no model of the hub that you may read"),
        ("org/private", "org/private: no such folder, and no model of the hub that you may read"),
        ("org/..", "org/..: no such folder"),
        ("org/a--b", "org/a--b: no such folder"),
    ],
)
def test_a_wrong_name_is_one_clear_line(hub, tmp_path, name, says):
    said = load(hub, tmp_path, name)
    assert says in said and "\n" not in said


def test_only_what_is_read_is_downloaded(hub, tmp_path):
    """Of a model whose VAE is wanted, that; of one that is to have another, all but that; of a config, no weights."""

    def weights():
        return {name.split("/")[0] for name in hub.downloads if name.endswith(".safetensors")}

    code = "print(m.made.said)"
    assert load(hub, tmp_path / "a", by="vae=", code=code).endswith("'VAE': 'org/tiny'}") and weights() == {"vae"}
    hub.asked.clear()
    load(hub, tmp_path / "b", by=f"vae={str(shipped_weights('tiny') / 'vae')!r}, where=", code=code)
    assert weights() == {"unet", "text_encoder"}
    hub.asked.clear()
    single(shipped_weights("tiny"), tmp_path / "single.safetensors")
    said = load(hub, tmp_path / "c", by=f"where={str(tmp_path / 'single.safetensors')!r}, config=", code=code)
    assert said == "{'Model': 'single.safetensors'}" and not weights() and "tokenizer/vocab.json" in hub.downloads


def test_a_vae_alone(hub, tmp_path):
    """As those that people swap in are on the hub: a configuration and weights, in no folder of a model."""
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        hub.files[name] = FILES[f"vae/{name}"]
    hub.files = {
        name: path
        for name, path in hub.files.items()
        if "/" not in name and name not in ("model_index.json", "minip2p.json")
    }
    hub.files["diffusion_pytorch_model.bin"] = FILES["vae/config.json"]
    code = "print(m.made.said)"
    said = load(hub, tmp_path, by="vae=", code=code)
    assert said == "{'Model': 'tiny', 'VAE': 'org/tiny'}"
    assert sorted(hub.downloads) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert load(hub, tmp_path, by="vae=", code=code, more={"HF_HUB_OFFLINE": "1"}) == said
    assert "unet/config.json: no such file" in load(hub, tmp_path)


def test_what_may_be_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model").mkdir()
    assert is_repo_id("org/name") and is_repo_id("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert not any(map(is_repo_id, ("here/model", "here/moddel", "name", "a/b/c", "/a/b", "a b/c", "")))


def test_what_is_downloaded_of_a_repository():
    """Of each part's weights the plain ones, else an index with its shards, else a variant."""
    plain = ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]
    shards = ["vae/diffusion_pytorch_model.safetensors.index.json"]
    shards += [f"vae/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = ["text_encoder/model.fp16.safetensors"]
    small = ["model_index.json", "unet/config.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"]
    other = ["README.md", "unet/model.onnx", "safety_checker/model.safetensors", "v1-5.ckpt"]
    assert set(files_to_download([*plain, *shards, *half, *small, *other], PARTS)) == {plain[0], *shards, *half, *small}
    assert set(files_to_download([*plain, *shards, *half, *small, *other], ["vae/"])) == {*shards, *small}
    assert files_to_download([*plain, *small], ()) == small
    other = "unet/diffusion_pytorch_model-00001-of-00002.safetensors"
    for variant in ("fp16", "bf16"):
        index = f"unet/diffusion_pytorch_model.safetensors.index.{variant}.json"
        for shard in (
            f"unet/diffusion_pytorch_model.{variant}-00001-of-00002.safetensors",
            f"unet/diffusion_pytorch_model-00001-of-00002.{variant}.safetensors",
        ):
            assert files_to_download([index, shard, other], PARTS) == [index, shard]
