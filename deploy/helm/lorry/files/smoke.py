"""What `helm test` runs: the server is ready, lists its base, and the base answers one token."""

import json
import sys
import urllib.request


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(sys.argv[1] + path, data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        sys.stdout.write(f"{path} {answer.status}\n")
        return json.load(answer)


ask("/readyz")
base = ask("/v1/models")["data"][0]["id"]
answer = ask("/v1/completions", {"model": base, "prompt": "Hello", "max_tokens": 1})
assert answer["model"] == base, answer
sys.stdout.write(f"{base} answers\n")
