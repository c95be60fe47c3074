"""docs/api.md documents every route of the server, and no other."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from starlette.routing import Match, Route

from server.paths import INFERENCE_PATHS

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
HEADING = re.compile(r"^### `([A-Z]+) (/\S+)`$", re.M)
CODE = re.compile(r"```bash\n(.*?)```", re.S)


@pytest.fixture
def routes(house) -> list[Route]:
    inference = [Route(path, endpoint=print, methods=["POST"]) for path in INFERENCE_PATHS]
    return [*house.app.routes, *inference]


def requests() -> list[tuple[str, str]]:
    """(method, path) of each curl command on the page."""
    commands = re.split(r"^(?=\S)", "\n".join(CODE.findall(PAGE)), flags=re.M)
    found = []
    for words in (shlex.split(each) for each in commands if each.startswith("curl ")):
        (url,) = (word for word in words if word.startswith("$U/"))
        has_body = any(word in words for word in ("--json", "-F"))
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if has_body else "GET"
        if "--json" in words:
            body = words[words.index("--json") + 1]
            if not body.startswith("@"):  # of a file
                json.loads(body)
        found.append((method, url.removeprefix("$U").partition("?")[0]))
    return found


def test_every_route_has_its_heading_and_every_heading_its_route(routes):
    known = {
        (method, route.path.replace(":path}", "}"))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    headings = HEADING.findall(PAGE)
    assert len(headings) == len(set(headings))
    assert set(headings) == known


def test_every_curl_command_requests_an_existing_route(routes):
    def exists(method: str, path: str) -> bool:
        scope = {"type": "http", "method": method, "path": path, "root_path": ""}
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    assert len(requests()) > 20
    assert [each for each in requests() if not exists(*each)] == []
