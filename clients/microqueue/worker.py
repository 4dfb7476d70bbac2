"""Puts twenty jobs into a queue and takes them out: worker.py URL QUEUE"""

import http.client
import sys
import urllib.parse

url, queue = sys.argv[1:]
PRODUCER = {"Authorization": "Bearer 5c2f8a1e-6b0d-4e77-9a43"}
WORKER = {"Authorization": "Bearer e17d94b3-20fa-4c8b-8d56"}

server = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)


def call(method, path, headers, body=None):
    """Returns the status and the body of a response."""
    server.request(method, path, body, headers)
    response = server.getresponse()
    return response.status, response.read()


for n in range(1, 21):
    response = call("POST", f"/in/{queue}", PRODUCER, b'{"context": "job %d"}' % n)
    assert response == (200, b""), response

while True:
    status, job = call("GET", f"/out/{queue}", WORKER)
    if status == 404:
        break
    assert status == 200, (status, job)
    print(queue, job.decode())
