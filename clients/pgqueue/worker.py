"""Inserts twenty messages, browses them and reads them: worker.py URL CHANNEL"""

import json
import sys
import urllib.request

url, channel = sys.argv[1:]


def call(method, path, body=None):
    """Returns the status and the JSON of a response, None for an empty one."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + path, data, headers, method=method)
    with urllib.request.urlopen(request) as response:
        return response.status, json.loads(response.read() or "null")


ids = []
for seq in range(1, 21):
    status, inserted = call("POST", "/message", {"channel": channel, "message": {"seq": seq}})
    assert (status, inserted["status"]) == (201, "Message inserted!"), inserted
    ids.append(inserted["id"])
assert ids == sorted(set(ids)), ids

status, channels = call("GET", "/channels")
assert {"channel": channel} in channels, channels
status, first = call("GET", f"/messages?channel={channel}&limit=15")
status, rest = call("GET", f"/messages?channel={channel}&offset=15")
assert [message["id"] for message in first + rest] == ids, first + rest

while True:
    status, message = call("GET", f"/queue/{channel}")
    if status == 204:
        break
    assert message["id"] == ids.pop(0), message
    print(message["channel"], message["message"]["seq"])

assert call("GET", f"/messages?channel={channel}") == (204, None)
