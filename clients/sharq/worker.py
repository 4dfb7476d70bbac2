"""Enqueues twenty jobs of three users and processes them: worker.py URL QUEUE_TYPE

A user gets one job every 100 ms.
"""

import json
import sys
import time
import urllib.error
import urllib.request

url, queue_type = sys.argv[1:]


def call(method, path, body=None):
    """Returns the status and the JSON of a response."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


for n in range(1, 21):
    response = call("POST", f"/enqueue/{queue_type}/user-{n % 3}/", {
        "job_id": f"job-{n}",
        "interval": 100,
        "payload": {"number": n},
        "requeue_limit": 5,
    })
    assert response == (201, {"status": "queued"}), response

finished = 0
while finished < 20:
    status, job = call("GET", f"/dequeue/{queue_type}/")
    if status == 404:  # none is ready yet
        time.sleep(0.05)
        continue
    assert (status, job["status"]) == (200, "success"), job
    print(job["queue_id"], job["payload"]["number"], job["requeues_remaining"])
    response = call("POST", f"/finish/{queue_type}/{job['queue_id']}/{job['job_id']}/")
    assert response == (200, {"status": "success"}), response
    finished += 1

for user in range(3):
    status, metrics = call("GET", f"/metrics/{queue_type}/user-{user}/")
    assert metrics["queue_length"] == 0, metrics
