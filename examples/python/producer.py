"""Publishes each line of its input, a JSON object: python3 producer.py QUEUE < FILE"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

URL = os.environ.get("QUEUED_URL", "http://localhost:8000")
TOKEN = os.environ.get("QUEUED_TOKEN", "")


def publish(queue, data):
    """Publishes a message and returns its id. It tries for up to two minutes, which has to
    be less than the deduplication window of the queue (5 minutes)."""
    request = urllib.request.Request(f"{URL}/queues/{queue}/messages", json.dumps({"data": data}).encode(), {
        "Authorization": f"Bearer {TOKEN}",
        "Idempotency-Key": str(uuid.uuid4()),  # the same in each attempt: the message is stored once
    })
    for delay in (1, 2, 4, 8, 16, None):
        try:
            with urllib.request.urlopen(request, timeout=15) as response:
                return json.load(response)["data"][0]["id"]
        except (OSError, http.client.HTTPException, ValueError) as error:  # includes timeouts and truncated responses
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if final or delay is None:  # no other attempt can succeed
                sys.exit(f"publish: {error} {error.read().decode() if final else ''}")
            print(f"publish: {error}; next attempt in {delay} s", file=sys.stderr)
            time.sleep(delay)


for line in sys.stdin:
    print(publish(sys.argv[1], json.loads(line)), flush=True)
