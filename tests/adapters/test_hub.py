"""Adapters from the Hugging Face hub, by the command, against a server that speaks its API."""

import json
import os
import subprocess
import sys
import zlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
WEIGHTS = "adapter_model.safetensors"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that publishing needs; it records the requests."""

    asked: list[str]
    files: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/acme/sql/resolve/") and name in self.files:
            body = self.files[name]
            self.answer(200, body, X_Repo_Commit=COMMIT, ETag=f'"{zlib.crc32(body)}"')
        elif path in (
            "/api/models/acme/sql",
            "/api/models/acme/sql/revision/v1",
            f"/api/models/acme/sql/revision/{COMMIT}",
        ):
            facts = {"id": "acme/sql", "sha": COMMIT, "siblings": []}
            self.answer(200, json.dumps(facts).encode(), Content_Type="application/json")
        elif path == f"/api/models/acme/sql/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": "0"}
                for n, b in self.files.items()
            ]
            self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        else:
            code = "RevisionNotFound" if "/revision/" in path else "RepoNotFound"
            self.answer(404, b"{}", X_Error_Code=code)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        found = [
            {"type": "file", "path": n, "size": len(b), "oid": "0"}
            for n, b in self.files.items()
            if n in body
        ]
        self.answer(200, json.dumps(found).encode(), Content_Type="application/json")


def publish_from_hub(
    host: str, source: str, base: Path, store: Path
) -> subprocess.CompletedProcess:
    # In a process of its own, because huggingface_hub reads its settings when it is imported.
    words = ["publish", source, "--name", "sql", "--base", base, "--store", store, "--json"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://{host}", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HOME": str(store.parent / "hf")}
    return subprocess.run(
        [sys.executable, "-m", "lorry", "adapters", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_revision_on_the_hub_is_published_and_recorded_as_its_commit(
    serve, kit, base_folder, tmp_path
) -> None:
    draft = kit.build()
    Hub.asked, Hub.files = (
        [],
        {
            "adapter_config.json": json.dumps(draft.config).encode(),
            WEIGHTS: kit.encode(draft.tensors),
            "README.md": b"# hello",
            "training_args.bin": b"pickle",
        },
    )
    host = serve(Hub)
    done = publish_from_hub(host, "hf://acme/sql@v1", base_folder, tmp_path / "store")
    assert done.returncode == 0, (done.stderr, Hub.asked)
    facts = json.loads(done.stdout)
    source = {"url": "hf://acme/sql@v1", "commit": COMMIT}
    assert facts["provenance"] == {"source": source}
    fetched_paths = {path for path in Hub.asked if "/resolve/" in path}
    assert fetched_paths == {
        f"/acme/sql/resolve/{COMMIT}/{name}" for name in ("adapter_config.json", WEIGHTS)
    }
    gone = publish_from_hub(host, "hf://acme/sql@v2", base_folder, tmp_path / "store")
    assert gone.returncode == 2
    assert "(source_not_found)" in gone.stderr
    assert "Traceback" not in gone.stderr
