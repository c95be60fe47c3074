"""What `helm test` runs: the server is ready, lists its base, and the base answers one token.

Without a key, where the server needs one: it is ready, and refuses.
"""

import json
import os
import sys
import urllib.error
import urllib.request

KEY = os.environ.get("LORRY_API_KEY")


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if KEY:
        headers["authorization"] = f"Bearer {KEY}"
    request = urllib.request.Request(sys.argv[1] + path, data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        sys.stdout.write(f"{path} {answer.status}\n")
        return json.load(answer)


ask("/readyz")
try:
    base = ask("/v1/models")["data"][0]["id"]
except urllib.error.HTTPError as refused:
    if KEY or refused.code != 401:
        raise
    sys.stdout.write("/v1/models 401: as it must be without a key\n")
    sys.exit(0)
answer = ask("/v1/completions", {"model": base, "prompt": "Hello", "max_tokens": 1})
assert answer["model"] == base, answer
sys.stdout.write(f"{base} answers\n")
