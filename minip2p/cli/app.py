"""The command `minip2p app`: a page to look at attention and to edit pictures, for this computer (extra `web`)."""

import socket
import threading
import webbrowser
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from minip2p.cli.options import load_model, parse_lora
from minip2p.web.recipes import ModelSource

MIN_TOKEN = 16  # characters
ALL_ADDRESSES = MappingProxyType({"0.0.0.0": "127.0.0.1", "::": "::1"})  # and what this computer calls itself
PACKAGES = ("starlette", "uvicorn", "python_multipart")


def app(args: Namespace) -> Iterator[None]:
    """Serves the page until Ctrl-C, or exports it. Raises ValueError if a package is missing or the port is in use."""
    check_extras()
    from minip2p.web.app import make_app
    from minip2p.web.export import export_page
    from minip2p.web.guard import Access
    from minip2p.web.limits import Limits
    from minip2p.web.server import AppServer, bind

    if args.token is not None and (len(args.token) < MIN_TOKEN or not args.token.isascii() or not args.token.isalnum()):
        raise ValueError(f"--token must have at least {MIN_TOKEN} letters and digits: leave it out to have one drawn")
    if args.export is not None:
        pipe = load_model(args)
        yield
        export_page(pipe, Path(args.export), model_source(args))
        print(f"{args.export}: open its index.html through a web server, as of python -m http.server -d {args.export}")
        return
    listener = bind(args.host, args.port)
    access, limits = Access.to(args.host, args.token), Limits()
    pipe = load_model(args)
    pipe.prepare("")  # a model that makes pictures from pictures is refused
    yield
    port = listener.getsockname()[1]
    url = address(ALL_ADDRESSES.get(args.host, args.host), port, access.token)

    def announce() -> None:
        print(f"minip2p app: {url}")
        if args.host in ALL_ADDRESSES:
            print(f"from other computers: {address(socket.gethostname(), port, access.token)}")
        print("Ctrl-C stops it.", flush=True)
        if not args.no_browser:
            threading.Thread(target=webbrowser.open, args=(url,), name="browser", daemon=True).start()

    server = AppServer(make_app(pipe, access, limits, model_source(args)), limits, announce)
    with suppress(KeyboardInterrupt):  # uvicorn has stopped, and may hand the signal on
        server.run([listener])
    print("stopped", flush=True)


def check_extras() -> None:
    """Raises ValueError if a package of the extra "web" is not installed."""
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError:
            raise ValueError(f"the app needs {package.replace('_', '-')}: pip install 'minip2p[web]'") from None


def address(host: str, port: int, token: str | None) -> str:
    """The URL of the server."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/" + ("" if token is None else f"?token={token}")


def model_source(args: Namespace) -> ModelSource:
    """How the command's model is loaded, for recipes."""
    options: list[str] = []
    for flag, value, default in (
        ("--model", args.model, None),
        ("--config", args.config, None),
        ("--vae", args.vae, None),
        ("--scheduler", args.scheduler, None),
        ("--dtype", args.dtype, "float32"),
        ("--device", args.device, "cpu"),
    ):
        options += [] if value == default else [f"{flag}={value}"]
    options += [f"--lora={text}" for text in args.lora] + [f"--embedding={file}" for file in args.embedding]
    arguments = [repr(args.model)] if args.model is not None else []
    arguments += [] if args.dtype == "float32" else [f"dtype=torch.{args.dtype}"]
    names = "vae", "config", "scheduler"
    arguments += [f"{name}={value!r}" for name in names if (value := getattr(args, name)) is not None]
    arguments += [] if args.device == "cpu" else [f"device={args.device!r}"]
    python = [f"pipe = minip2p.load({', '.join(arguments)})"]
    python += [f"pipe = pipe.merged({file!r}, {scale!r})" for file, scale in map(parse_lora, args.lora)]
    python += [f"pipe = pipe.with_embedding({file!r})" for file in args.embedding]
    return ModelSource(("import torch", "", *python) if args.dtype != "float32" else tuple(python), tuple(options))
