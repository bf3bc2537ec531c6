"""A Hugging Face hub on loopback, with checkpoints from folders: what plan and doctor ask of one."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serving_hub(folders: Mapping[str, Path], refused: Collection[str] = ()) -> Iterator[str]:
    """Serve checkpoints by hub id, and yield the URL. refused: those whose licence this client has not accepted."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            name = "/".join(path.removeprefix("api/models/").split("/")[:2])
            if path == "":
                return self.reply(200, b"hub")
            if name in refused:
                return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            if name not in folders:
                return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if path.startswith("api/"):
                return self.reply(200, self.about(name, path), {"Content-Type": "application/json"})
            return self.file(folders[name] / path.split("/", 4)[-1], body)

        def about(self, name: str, path: str) -> bytes:
            files = sorted(folders[name].iterdir())
            if "/tree/" in path:
                listed = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
                return json.dumps(listed).encode()
            siblings = [{"rfilename": file.name} for file in files]
            return json.dumps({"id": name, "sha": COMMIT, "siblings": siblings, "private": False}).encode()

        def file(self, file: Path, body: bool) -> None:
            if not file.is_file():
                return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            size = file.stat().st_size
            first, last = 0, size - 1
            if (span := self.headers.get("Range")) is not None:
                begin, _, end = span.removeprefix("bytes=").partition("-")
                first, last = int(begin), min(int(end or last), last)
            with file.open("rb") as opened:
                opened.seek(first)
                content = opened.read(last - first + 1) if body else b""
            etag = hashlib.sha1(file.name.encode()).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            return self.reply(206 if span else 200, content, headers, length=None if body else size)

        def reply(
            self, status: int, content: bytes, headers: Mapping[str, str] = {}, length: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends within as much
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
