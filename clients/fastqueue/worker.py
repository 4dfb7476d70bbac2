"""Publishes twenty events and processes them: worker.py URL NAME

The seventh fails the first time, and is delivered again.
"""

import json
import sys
import urllib.request

url, name = sys.argv[1:]


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, data, headers, method=method)
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read() or "null")


call("POST", "/topics", {"id": name})
call("POST", "/queues", {
    "id": name,
    "topic_id": name,
    "ack_deadline_seconds": 30,
    "message_retention_seconds": 1209600,
})
for n in range(1, 21):
    call("POST", f"/topics/{name}/messages", {
        "data": {"number": n},
        "attributes": {"event_name": "event1"},
    })

while messages := call("GET", f"/queues/{name}/messages")["data"]:
    for message in messages:
        number, delivery = message["data"]["number"], message["delivery_attempts"]
        if number == 7 and delivery == 1:
            call("PUT", f"/messages/{message['id']}/nack")
            continue
        print(message["queue_id"], number, delivery)
        call("PUT", f"/messages/{message['id']}/ack")
