"""Viewers in headless Chromium: their packages at fixed versions, a server on this machine alone, the program that drives them."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from bench_common import ROOT

from clm.errors import ClmError

PACKAGES = {
    "puppeteer-core": "24.43.1",
    "three": "0.187.0",
    "@sparkjsdev/spark": "2.2.0",
    "playcanvas": "2.23.3",
    "@playcanvas/supersplat-viewer": "1.36.2",
}
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
_INSTALL_SECONDS = 900
_PARTS = Path(__file__).resolve().parent


def program(names: Sequence[str], why: str) -> str:
    """The first of these programs that is installed."""
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    raise ClmError(f"{names[0]} is not installed (looked for {', '.join(names)}).", f"Install it: {why}.")


def chromium(named: str | None) -> str:
    """The browser: the one that is named, or what is found."""
    return program([named] if named else _CHROMIUM, "viewers run in it, without a window")


def install(folder: Path) -> Path:
    """`folder/node_modules` with all packages at their versions; only what is missing is fetched. ClmError where that fails."""
    if folder.resolve().is_relative_to(ROOT):
        raise ClmError(
            f"{folder} is in the repository.", "Name a folder elsewhere with --packages: it gets 200 MB of npm's."
        )
    modules = folder.resolve() / "node_modules"
    missing = [f"{name}@{version}" for name, version in PACKAGES.items() if _version(modules / name) != version]
    if missing:
        npm = program(["npm"], "it fetches the viewers")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "package.json").exists():  # else npm takes one of a folder above
            (folder / "package.json").write_text("{}\n")
        command = [npm, "install", "--no-audit", "--no-fund", "--save-exact", "--prefix", str(folder), *missing]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            raise ClmError(
                f"npm did not fetch {', '.join(missing)} in {_INSTALL_SECONDS} s.", "Look at the network."
            ) from None
        if done.returncode:
            lines = [
                line.removeprefix("npm error ") for line in done.stderr.splitlines() if line.startswith("npm error ")
            ]
            last = next((line for line in lines if not line.startswith("code ")), "it said nothing").rstrip(".")
            raise ClmError(
                f"npm could not install {', '.join(missing)}: {last}.", "Look at the network, or at --packages."
            )
    return modules


def _version(package: Path) -> str | None:
    try:
        return str(json.loads((package / "package.json").read_text())["version"])
    except (OSError, ValueError, KeyError):
        return None


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files below /npm, /parts and /files, each from its folder; nothing is kept by the browser."""

    extensions_map: ClassVar[dict[str, str]] = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".webp": "image/webp",
    }

    def __init__(self, *given: Any, places: dict[str, Path], **more: Any):
        self._places = places
        super().__init__(*given, **more)

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # browsers ask for it on their own
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        first, _, rest = path.lstrip("/").partition("/")
        self.directory = str(self._places.get(first, _PARTS / "nowhere"))
        return super().translate_path("/" + rest)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *_given: Any) -> None:
        pass


@contextmanager
def served(modules: Path, files: Path) -> Iterator[str]:
    """Address of a server, on this machine alone, while the block runs."""
    places = {"npm": modules, "parts": _PARTS, "files": files}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, places=places))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def drive(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What `drive.mjs` says of each sight, as it comes. ClmError where it ends before the last."""
    node = program(["node"], "it drives the browser")
    process = subprocess.Popen(
        [node, str(_PARTS / "drive.mjs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    complaints: list[str] = []
    reader = threading.Thread(target=lambda: complaints.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            reader.join()  # of what it said last, which names the reason
            said = next((line for line in complaints if "Error" in line), "it gave no reason").strip()
            raise ClmError(f"The browser could not be driven: {said}", "Run it by itself: chromium --headless.")
    finally:
        process.kill()
        process.wait()
