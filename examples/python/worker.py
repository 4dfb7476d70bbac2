"""Processes the messages of a queue until SIGTERM: python3 worker.py QUEUE"""

import http.client
import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request

URL = os.environ.get("QUEUED_URL", "http://localhost:8000")
TOKEN = os.environ.get("QUEUED_TOKEN", "")
LEASE = int(os.environ.get("LEASE_SECONDS", 30))  # the time after a crash until a message is delivered again
WAIT = 5  # less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())


def process(data):
    """Your work. It may take longer than the lease, and an exception is a failed delivery."""
    print(data["to"], flush=True)
    time.sleep(data.get("seconds", 0))


def call(method, path, body=None, attempts=1):
    request = urllib.request.Request(URL + path, json.dumps(body or {}).encode(), {"Authorization": f"Bearer {TOKEN}"}, method=method)
    for attempt in range(1, attempts + 1):
        try:
            with urllib.request.urlopen(request, timeout=WAIT + 10) as response:
                return json.loads(response.read() or "null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if final or attempt == attempts:
                raise RuntimeError(f"{method} {path}: {error}") from error
            time.sleep(attempt)


def extend(message, done):
    while not done.wait(LEASE / 3):
        try:  # the lease token changes with each extension
            message["scheduled_at"] = call("PUT", path(message, "extend"), {"ack_deadline_seconds": LEASE})["scheduled_at"]
        except RuntimeError as error:
            print(error, file=sys.stderr)


def path(message, action):
    return f"/messages/{message['id']}/{action}?scheduled_at={message['scheduled_at']}"


while not stopping.is_set():
    try:
        received = call("POST", f"/queues/{sys.argv[1]}/messages/receive", {"limit": 1, "wait_seconds": WAIT, "ack_deadline_seconds": LEASE})
    except RuntimeError as error:
        print(error, file=sys.stderr)
        stopping.wait(1)
        continue
    for message in received["data"]:
        done = threading.Event()
        extender = threading.Thread(target=extend, args=(message, done))
        extender.start()
        action, body = "ack", None
        try:
            process(message["data"])
        except Exception as error:  # after the last delivery the message moves to the dead queue, with this text
            action, body = "nack", {"error": repr(error)}
        done.set()
        extender.join()
        try:
            call("PUT", path(message, action), body, attempts=5)
        except RuntimeError as error:  # a 409 says that the lease has ended, and another worker may have the message
            print(error, file=sys.stderr)
