"""An object store on loopback that speaks as much of S3's protocol as checkpoints and `diptych run` take."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest


@contextlib.contextmanager
def serving_s3(root: Path, refused: str = "-", page_size: int = 1000) -> Iterator[list[tuple[str, int]]]:
    """Serve the folders in `root` as buckets, and point AWS's variables there. Yield the (path, bytes) of every read.

    refused: the bucket that these credentials may not read. page_size: keys of a listing without a delimiter.
    """
    reads: list[tuple[str, int]] = []
    writing = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path, query = url.path.strip("/"), parse_qs(url.query)
            if path.partition("/")[0] == refused:
                self.error(403, "AccessDenied")
            elif "list-type" in query and not (root / path).is_dir():
                self.error(404, "NoSuchBucket")
            elif "list-type" in query:
                prefix = query.get("prefix", [""])[0]
                after = query.get("continuation-token", [""])[0]
                whole = "delimiter" not in query
                self.reply(200, (self.page(path, prefix, after) if whole else self.listing(path, prefix)).encode())
            elif (root / path).is_file():
                self.file(root / path)
            else:
                self.error(404, "NoSuchKey")

        def do_PUT(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            file = root / path
            with writing:
                if self.headers.get("If-None-Match") == "*" and file.exists():
                    self.error(412, "PreconditionFailed", "<Condition>If-None-Match</Condition>")
                    return
                file.parent.mkdir(parents=True, exist_ok=True)
                new = file.with_name(f".{file.name}.new")
                new.write_bytes(content)
                os.replace(new, file)
            self.reply(200, b"", {"ETag": '"0"'})

        def do_DELETE(self) -> None:
            (root / urlsplit(self.path).path.strip("/")).unlink(missing_ok=True)
            self.reply(204, b"")

        def page(self, bucket: str, prefix: str, after: str) -> str:
            """List the keys after a key, in all folders below, as many as a page has."""
            folder = root / bucket
            keys = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            later = [key for key in keys if key.startswith(prefix) and key > after]
            return self.listed(bucket, prefix, [folder / key for key in later[:page_size]], more=len(later) > page_size)

        def listing(self, bucket: str, prefix: str) -> str:
            folder = root / bucket / prefix
            files = sorted(folder.iterdir()) if folder.is_dir() and prefix.endswith(("", "/")) else []
            return self.listed(bucket, prefix, files)

        def listed(self, bucket: str, prefix: str, files: list[Path], *, more: bool = False) -> str:
            keys = "".join(
                f"<Contents><Key>{escape(str(file.relative_to(root / bucket)))}</Key><Size>{file.stat().st_size}</Size>"
                f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;0&quot;</ETag>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
                for file in files
                if file.is_file()
            )
            token = escape(str(files[-1].relative_to(root / bucket))) if more else ""
            more_xml = f"<NextContinuationToken>{token}</NextContinuationToken>" if more else ""
            about = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(files)}</KeyCount>"
            return (
                '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"{about}<MaxKeys>1000</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{more_xml}{keys}"
                "</ListBucketResult>"
            )

        def file(self, file: Path) -> None:
            size = file.stat().st_size
            first, last = 0, size - 1
            if (span := self.headers.get("Range")) is not None:
                begin, _, end = span.removeprefix("bytes=").partition("-")
                first, last = int(begin), min(int(end or last), last)
            with file.open("rb") as opened:
                opened.seek(first)
                content = opened.read(last - first + 1)
            if self.command == "GET":
                reads.append((str(file.relative_to(root)), len(content)))
            part = {"Content-Range": f"bytes {first}-{last}/{size}"} if span else {}
            self.reply(206 if span else 200, content, {"ETag": '"0"', "Accept-Ranges": "bytes", **part})

        def error(self, status: int, code: str, more: str = "") -> None:
            self.reply(status, f"<Error><Code>{code}</Code><Message>{code}</Message>{more}</Error>".encode())

        def reply(self, status: int, content: bytes, headers: Mapping[str, str] = {}) -> None:
            self.send_response(status)
            for key, value in {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends within as much
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        if s3fs := sys.modules.get("s3fs"):
            s3fs.S3FileSystem.clear_instance_cache()  # one of another test would ask another port
        try:
            yield reads
        finally:
            server.shutdown()
            server.server_close()
