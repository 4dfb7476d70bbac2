"""Processes the messages of a queue until SIGTERM or Ctrl-C: python3 worker.py QUEUE"""

import http.client
import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, wait

URL = os.environ.get("QUEUED_URL", "http://localhost:8000")
HEADERS = {"Authorization": "Bearer " + os.environ.get("QUEUED_TOKEN", "")}
LEASE = int(os.environ.get("LEASE_SECONDS", 30))  # the time after a crash until a message is delivered again
WAIT = 5  # less than the time from SIGTERM to SIGKILL, which is 10 s in Docker


def work(data):
    """Your work. It may take longer than the lease, and an exception is a failed delivery."""
    print(data["to"], flush=True)
    time.sleep(data.get("seconds", 0))


def call(method, path, body):
    """Returns None if the request fails."""
    try:
        request = urllib.request.Request(URL + path, json.dumps(body).encode(), HEADERS, method=method)
        with urllib.request.urlopen(request, timeout=WAIT + 10) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        print(f"{method} {path}: {error.code} {error.read().decode()}", file=sys.stderr)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"{method} {path}: {error}", file=sys.stderr)


stopping = threading.Event()
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda *_: stopping.set())
pool = ThreadPoolExecutor(1)
done = {}  # the ack or nack of the last message, which is sent with the next receive
while done or not stopping.is_set():
    receive = {"limit": 0 if stopping.is_set() else 1, "wait_seconds": WAIT, "ack_deadline_seconds": LEASE, **done}
    received = call("POST", f"/queues/{sys.argv[1]}/messages/receive", receive)
    if received is None:
        time.sleep(1)  # and repeat the ack or nack
        continue
    done = {}
    for message in received["data"]:
        lease = {"id": message["id"], "scheduled_at": message["scheduled_at"]}
        job = pool.submit(work, message["data"])
        while wait([job], LEASE / 3).not_done:
            extended = call("PUT", "/messages/{id}/extend?scheduled_at={scheduled_at}".format(**lease), {"ack_deadline_seconds": LEASE})
            lease["scheduled_at"] = (extended or lease)["scheduled_at"]
        if job.exception():  # after the last delivery the message moves to the dead queue, with this text
            print(f"{message['id']}: {job.exception()!r}", file=sys.stderr)
            done = {"nack": [{**lease, "error": repr(job.exception())}]}
        else:
            done = {"ack": [lease]}
