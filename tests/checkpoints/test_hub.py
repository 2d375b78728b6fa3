"""Models by their name on the hub, against a small server on this machine: first download, cache, offline, failures."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from families import write_single_file
from paths import ROOT
from safetensors.torch import save_file

from minip2p.checkpoints.hub import WEIGHT_FOLDERS, download, files_to_download, is_repo_id
from minip2p.checkpoints.load import load_components
from minip2p.io.files import shipped_weights

TINY = shipped_weights("tiny")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {str(path.relative_to(TINY)): path for path in TINY.rglob("*") if path.is_file()}
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class HubServer(ThreadingHTTPServer):
    """Serves the model that ships with minip2p as org/tiny.

    files: of the repository. requests: what has been asked for. truncated: files of which only half is sent.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), RequestHandler)
        self.requests, self.truncated, self.files = [], set(), dict(FILES)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def downloads(self):
        return [name for method, name in self.requests if method == "GET" and not name.startswith("api/")]

    @property
    def downloaded_weights(self):
        """The folders whose weights have been downloaded."""
        return {name.split("/")[0] for name in self.downloads if name.endswith(".safetensors")}


class RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send_head(self, length, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send_json(self, content, status=200, **headers):
        body = json.dumps(content).encode()
        self.send_head(len(body), status, Content_Type="application/json", **headers)
        self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/"):
            self.server.requests.append((self.command, path))
            self.answer_api(path)
        else:
            name = path.removeprefix("org/tiny/resolve/").split("/", 1)[1]
            self.server.requests.append((self.command, name))
            self.answer_file(name)

    def answer_api(self, path):
        if path.startswith("api/models/org/private"):
            self.send_json({}, 403, X_Error_Code="GatedRepo")
        elif not re.match(r"api/models/org/tiny($|/)", path):
            self.send_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/tree/" in path:
            files = self.server.files.items()
            entries = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40} for n, f in files]
            self.send_json(entries)
        else:
            siblings = [{"rfilename": name} for name in self.server.files]
            info = {"id": "org/tiny", "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}
            self.send_json(info | {"siblings": siblings})

    def answer_file(self, name):
        if name not in self.server.files:
            return self.send_head(0, 404, X_Error_Code="EntryNotFound")
        body = self.server.files[name].read_bytes()
        first = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if first:
            headers["Content_Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        self.send_head(len(body) - first, 206 if first else 200, **headers)
        if self.command == "GET" and name not in self.server.truncated:
            self.wfile.write(body[first:])
        elif self.command == "GET":
            self.wfile.write(body[first : (first + len(body)) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running server, which huggingface_hub takes for the hub in this process, with an empty cache in tmp_path.

    huggingface_hub reads its environment variables when it is imported, so its constants are changed; that they come
    from the environment is tested below. Its retries do not wait here.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    server = HubServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    use_cache(monkeypatch, tmp_path / "cache")
    yield server
    server.shutdown()
    server.server_close()
    close_session()


def use_cache(monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))


def go_offline(monkeypatch, offline=True):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)


def is_tiny(components):
    return components.dtype == torch.float32 and len(components.unet.sites) == 14


def test_a_model_is_downloaded_once_and_then_taken_from_the_cache_and_offline(hub, monkeypatch):
    hub.files |= {
        "unet/diffusion_pytorch_model.fp16.safetensors": FILES["vae/config.json"],
        "unet/diffusion_pytorch_model.bin": FILES["vae/config.json"],
        "README.md": FILES["vae/config.json"],
        "big.ckpt": FILES["vae/config.json"],
    }
    assert is_tiny(load_components("org/tiny")[0])
    assert sorted(hub.downloads) == sorted(FILES)  # and none of the others
    hub.requests.clear()
    assert is_tiny(load_components("org/tiny")[0]) and not hub.downloads
    hub.requests.clear()
    with monkeypatch.context() as offline:
        go_offline(offline)
        assert is_tiny(load_components("org/tiny")[0]) and not hub.requests
    from huggingface_hub.utils import close_session

    hub.shutdown()
    hub.server_close()
    close_session()  # and its connections to the server
    assert is_tiny(load_components("org/tiny")[0])  # the hub cannot be reached


def test_huggingface_hubs_environment_variables_are_obeyed(hub, tmp_path, monkeypatch):
    """A process of its own, with HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, uses what this one has downloaded."""
    use_cache(monkeypatch, tmp_path / "home/hub")
    folder = download("org/tiny", ())
    hub.requests.clear()
    script = """
from huggingface_hub.constants import ENDPOINT
from minip2p.checkpoints.hub import download
print(ENDPOINT, download("org/tiny"))
"""
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert process.stdout.split() == [hub.url, str(folder)] and not hub.requests


def test_offline_without_a_cache_is_one_clear_line(hub, monkeypatch):
    go_offline(monkeypatch)
    message = "^org/tiny: no such folder, not in the hub's cache, and the hub cannot be reached"
    with pytest.raises(ValueError, match=message) as error:
        load_components("org/tiny")
    assert "\n" not in str(error.value) and not hub.requests


def test_a_download_that_breaks_off_is_one_clear_line_and_is_resumed(hub, monkeypatch):
    hub.truncated.add(UNET_WEIGHTS)
    with pytest.raises(ValueError, match="^org/tiny: the download broke off; run it again to resume it") as error:
        load_components("org/tiny")
    assert "\n" not in str(error.value)
    with monkeypatch.context() as offline:
        go_offline(offline)
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_components("org/tiny")
    hub.truncated.clear()
    assert is_tiny(load_components("org/tiny")[0])


def test_a_repository_without_a_file_is_one_clear_line(hub):
    del hub.files[UNET_WEIGHTS]
    with pytest.raises(FileNotFoundError, match="diffusion_pytorch_model.safetensors: no such file"):
        load_components("org/tiny")


@pytest.mark.parametrize(
    "name, message",
    [
        ("org/other", "org/other: no such folder, and the hub has no such model that you may read"),
        ("org/private", "org/private: no such folder, and the hub has no such model that you may read"),
        ("org/..", "org/..: no such folder"),
        ("org/a--b", "org/a--b: no such folder"),
    ],
)
def test_a_wrong_name_is_one_clear_line(hub, name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{re.escape(message)}") as error:
        load_components(name)
    assert "\n" not in str(error.value)


def test_only_what_is_read_is_downloaded(hub, tmp_path, monkeypatch):
    """A model that supplies a VAE: the VAE's weights. One whose VAE is replaced: all others. A config: no weights."""
    use_cache(monkeypatch, tmp_path / "a")
    components, _ = load_components(vae="org/tiny")
    assert components.origin.labels["VAE"] == "org/tiny" and hub.downloaded_weights == {"vae"}
    hub.requests.clear()
    use_cache(monkeypatch, tmp_path / "b")
    load_components("org/tiny", vae=TINY / "vae")
    assert hub.downloaded_weights == {"unet", "text_encoder"}
    hub.requests.clear()
    use_cache(monkeypatch, tmp_path / "c")
    write_single_file(TINY, tmp_path / "single.safetensors")
    components, _ = load_components(tmp_path / "single.safetensors", config="org/tiny")
    assert components.origin.labels == {"Model": "single.safetensors"}
    assert not hub.downloaded_weights and "tokenizer/vocab.json" in hub.downloads


def test_a_repository_with_a_vae_alone(hub, monkeypatch):
    """Such as people swap in: a configuration and weights in the root, and no folder of a model."""
    weights = "diffusion_pytorch_model.safetensors"
    hub.files = {name: FILES[f"vae/{name}"] for name in ("config.json", weights)}
    hub.files["diffusion_pytorch_model.bin"] = FILES["vae/config.json"]
    components, _ = load_components(vae="org/tiny")
    assert components.origin.labels == {"Model": "tiny", "VAE": "org/tiny"}
    assert sorted(hub.downloads) == ["config.json", weights]
    with monkeypatch.context() as offline:
        go_offline(offline)
        assert load_components(vae="org/tiny")[0].origin.labels == components.origin.labels
    with pytest.raises(FileNotFoundError, match="has no unet/: it is one component, such as a VAE, and not a model"):
        load_components("org/tiny")


def test_a_repository_that_is_not_a_model_is_one_clear_line(hub):
    hub.files = {"README.md": FILES["vae/config.json"]}
    with pytest.raises(ValueError, match="^org/tiny: is on the hub, but not a model in diffusers' layout$"):
        download("org/tiny")


def test_what_may_be_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "model").mkdir(parents=True)
    assert is_repo_id("org/name") and is_repo_id("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert not any(map(is_repo_id, ("local/model", "local/moddel", "name", "a/b/c", "/a/b", "a b/c", "")))


def test_which_files_of_a_repository_are_downloaded():
    """For each component the plain weights, or else an index with its shards, or else a variant."""
    plain = ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]
    shards = ["vae/diffusion_pytorch_model.safetensors.index.json"]
    shards += [f"vae/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = ["text_encoder/model.fp16.safetensors"]
    small = ["model_index.json", "unet/config.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"]
    unread = ["README.md", "unet/model.onnx", "safety_checker/model.safetensors", "v1-5.ckpt"]
    repository = [*plain, *shards, *half, *small, *unread]
    assert set(files_to_download(repository, WEIGHT_FOLDERS)) == {plain[0], *shards, *half, *small}
    assert set(files_to_download(repository, ["vae/"])) == {*shards, *small}
    assert files_to_download([*plain, *small], ()) == small


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("place", ["before the number", "after it"])
def test_the_shards_of_a_variant_are_downloaded_and_no_others(variant, place):
    stem, number = "unet/diffusion_pytorch_model", "-00001-of-00002"
    index = f"{stem}.safetensors.index.{variant}.json"
    shard = (
        f"{stem}.{variant}{number}.safetensors"
        if place == "before the number"
        else f"{stem}{number}.{variant}.safetensors"
    )
    plain_shard = f"{stem}{number}.safetensors"
    assert files_to_download([index, shard, plain_shard], WEIGHT_FOLDERS) == [index, shard]


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "style.safetensors"])
def test_a_lora_is_downloaded_by_its_name_and_then_taken_from_the_cache(hub, tmp_path, monkeypatch, model, name):
    """Only the LoRA's file and PEFT's settings; a repository without a safetensors file is one clear line."""
    hub.files = {}
    with pytest.raises(ValueError, match="org/tiny: has no LoRA in it"):
        model.merged("org/tiny")
    layer, width = "unet.mid_block.attentions.0.proj_in", model.unet.config.block_out_channels[-1]
    tensors = {f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(width, 1)}
    save_file(tensors, tmp_path / name)
    hub.files = {name: tmp_path / name, "README.md": FILES["vae/config.json"], "sheet.png": FILES["vae/config.json"]}
    merged = model.merged("org/tiny")
    assert hub.downloads == [name] and merged.origin.labels["LoRA"] == f"{name} at 1"
    go_offline(monkeypatch)
    assert model.merged("org/tiny").components.fingerprint == merged.components.fingerprint
    use_cache(monkeypatch, tmp_path / "empty")
    with pytest.raises(ValueError, match="org/tiny: no such folder, not in the hub's cache") as error:
        model.merged("org/tiny")
    assert "\n" not in str(error.value)


def test_a_lora_is_named_by_its_file_on_the_hub(hub, tmp_path, monkeypatch, model):
    """org/name/file.safetensors, also in a folder, of a repository with several; never another one of its files."""
    layer, width = "unet.mid_block.attentions.0.proj_in", model.unet.config.block_out_channels[-1]
    for scale, name in ((1, "a.safetensors"), (2, "b.safetensors"), (3, "c.safetensors")):
        tensors = {
            f"{layer}.lora_A.weight": torch.full((1, width), scale),
            f"{layer}.lora_B.weight": torch.ones(width, 1),
        }
        save_file({n: t.float() for n, t in tensors.items()}, tmp_path / name)
    hub.files = {"a.safetensors": tmp_path / "a.safetensors", "styles/b.safetensors": tmp_path / "b.safetensors"}
    merged = model.merged("org/tiny/styles/b.safetensors")
    assert hub.downloads == ["styles/b.safetensors"]
    assert merged.components.fingerprint == model.merged(tmp_path / "b.safetensors").components.fingerprint
    go_offline(monkeypatch)
    assert model.merged("org/tiny/styles/b.safetensors").components.fingerprint == merged.components.fingerprint
    for where in ("org/tiny/c.safetensors", "org/tiny/a.safetensors"):  # not in the repository; not in the cache
        with pytest.raises(ValueError, match=f"^{where}: no such file, and the hub has none of this name in org/tiny$"):
            model.merged(where)


def test_pefts_folders_are_downloaded_as_one_lora(hub, tmp_path, monkeypatch, model):
    width = model.unet.config.block_out_channels[-1]
    parts = {
        "unet": ("mid_block.attentions.0.proj_in", width),
        "text_encoder": ("text_model.encoder.layers.0.mlp.fc2", None),
    }
    hub.files = {"README.md": FILES["vae/config.json"]}
    for network, (layer, size) in parts.items():
        outputs, inputs = (
            (size, size)
            if size
            else model.text.clip_encoders[0].network.get_parameter(f"{layer}.weight".removeprefix("text_model.")).shape
        )
        folder = tmp_path / network
        folder.mkdir()
        tensors = {f"{layer}.lora_A.weight": torch.ones(1, inputs), f"{layer}.lora_B.weight": torch.ones(outputs, 1)}
        save_file({f"base_model.model.{n}": t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": outputs}))
        hub.files |= {f"{network}/{file.name}": file for file in folder.iterdir()}
    merged = model.merged("org/tiny")
    assert sorted(hub.downloads) == sorted(hub.files.keys() - {"README.md"})
    assert merged.components.fingerprint == model.merged(tmp_path).components.fingerprint
    go_offline(monkeypatch)
    assert model.merged("org/tiny").components.fingerprint == merged.components.fingerprint
