"""Ships the orders of the queue until SIGTERM or Ctrl-C: python3 worker.py

Its changes and the ack are one transaction, so each order is shipped exactly once. The
transaction locks the message: the lease needs no extension.
"""

import http.client
import json
import os
import signal
import sys
import threading
import urllib.request
from contextlib import closing

import psycopg2

DATABASE = os.environ["DATABASE_URL"]
URL = os.environ.get("QUEUED_URL", "http://localhost:8000") + "/queues/orders/messages/receive"
HEADERS = {"Authorization": "Bearer " + os.environ.get("QUEUED_TOKEN", "")}
WAIT = 5  # less than the time from SIGTERM to SIGKILL, which is 10 s in Docker


def receive():
    request = urllib.request.Request(URL, json.dumps({"limit": 1, "wait_seconds": WAIT}).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=WAIT + 10) as response:
        return json.load(response)["data"]


def ship(db, message, lease):
    order = message["data"]
    with db, db.cursor() as cursor:  # a transaction: it commits at the end, and is rolled back after an exception
        cursor.execute("SELECT queued.ack(%s, %s)", [message["id"], lease])
        if not cursor.fetchone()[0]:
            return  # the lease has ended, and another worker has the message or has shipped the order
        cursor.execute("UPDATE products SET stock = stock - %(quantity)s WHERE id = %(product)s", order)
        cursor.execute("INSERT INTO shipments (order_id) VALUES (%(id)s)", order)
    print(order["id"], flush=True)


def nack(db, message, lease, error):
    """After its last delivery the message moves to the dead queue, with the text of the error."""
    with db, db.cursor() as cursor:
        cursor.execute("SELECT queued.nack(%s, scheduled_at => %s, error => %s)", [message["id"], lease, repr(error)])


stopping = threading.Event()
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda *_: stopping.set())
while not stopping.is_set():
    try:
        with closing(psycopg2.connect(DATABASE, connect_timeout=5)) as db:
            while not stopping.is_set():
                for message in receive():
                    lease = message["scheduled_at"] + "Z"  # the lease token, which is in UTC
                    try:
                        ship(db, message, lease)
                    except Exception as error:
                        nack(db, message, lease, error)
    except (OSError, http.client.HTTPException, ValueError, psycopg2.Error) as error:
        # The server or the database is unavailable. The message is delivered again when its lease ends.
        print(error, file=sys.stderr)
        stopping.wait(1)
