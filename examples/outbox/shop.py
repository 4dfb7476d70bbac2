"""Stores orders, and a message about each in the same transaction: python3 shop.py < ORDERS

Each line of the input is an order: {"id": "01a218b5-…", "product": "tea", "quantity": 2}
"""

import json
import os
import sys
import time
from contextlib import closing

import psycopg2

DATABASE = os.environ["DATABASE_URL"]


def store(db, order):
    with db, db.cursor() as cursor:  # a transaction: it commits at the end, and is rolled back after an exception
        cursor.execute("INSERT INTO orders VALUES (%(id)s, %(product)s, %(quantity)s) ON CONFLICT (id) DO NOTHING", order)
        if cursor.rowcount == 1:  # otherwise the order and its message exist
            cursor.execute("SELECT queued.send('orders', %s)", [json.dumps(order)])


for line in sys.stdin:
    order = json.loads(line)
    for delay in (1, 2, 4, 8, 16, None):
        try:
            with closing(psycopg2.connect(DATABASE, connect_timeout=5)) as db:
                store(db, order)
            break
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:  # also if the commit may have happened
            if delay is None:
                raise
            print(f"{error}; next attempt in {delay} s", file=sys.stderr)
            time.sleep(delay)
    print(order["id"], flush=True)
