"""A hub of this machine: its cache in a folder, and a server that answers as the hub does."""

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"
REFUSED = {  # repository -> status, the hub's code of it
    "owner/gated": (403, "GatedRepo"),
    "owner/none": (404, "RepoNotFound"),
    "owner/down": (500, ""),
}


def patched(patch: pytest.MonkeyPatch, cache: Path, endpoint: str | None = None) -> None:
    """huggingface_hub with another cache; offline without an endpoint."""
    place = "huggingface_hub.constants"
    patch.setattr(f"{place}.HF_HUB_CACHE", str(cache))
    patch.setattr(f"{place}.HF_HUB_OFFLINE", endpoint is None)
    patch.setattr(f"{place}.ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(f"{place}.HUGGINGFACE_CO_URL_TEMPLATE", template)


def keep(cache: Path, name: str, folder: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """A folder as the cache holds it, its files links to blobs; the snapshot."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    for file in filter(Path.is_file, folder.rglob("*")):
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / ref).write_text(commit)
    return snapshot


@contextmanager
def serving(repositories: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub of these folders, and what is asked of it, in order."""
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
            name, what, *rest = "/".join(path[:2]), *path[2:]
            asked.append(f"{self.command} {'/'.join(path[2:])}")
            if name not in repositories:
                self.answer(b"", *REFUSED.get(name, (404, "RepoNotFound")))
            elif what == "revision" and rest[0] not in ("main", COMMIT):
                self.answer(b"", 404, "RevisionNotFound")
            elif what == "revision":
                self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            elif what == "tree":
                files = filter(Path.is_file, repositories[name].rglob("*"))
                self.answer(json.dumps([told(f, repositories[name]) for f in files]).encode())
            else:
                self.answer(repositories[name].joinpath(*rest[1:]).read_bytes())

        do_HEAD = do_GET

        def answer(self, content: bytes, status: int = 200, code: str = "") -> None:
            self.send_response(status)
            told = {"X-Error-Code": code, "X-Repo-Commit": COMMIT, "Content-Length": len(content)}
            told["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            for name, value in told.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def told(file: Path, folder: Path) -> dict[str, object]:
    """A file as the hub lists it."""
    oid = hashlib.sha256(file.read_bytes()).hexdigest()
    name = str(file.relative_to(folder))
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": oid}
