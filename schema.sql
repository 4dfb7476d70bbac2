-- Everything queued keeps, in the schema "queued" of a PostgreSQL database
-- that may well be an application's own. Each part between "-- step" lines is
-- one version: a database at version n gets the parts after n, in order, in one
-- transaction (migrate.go). A step that has been released is never
-- edited: a change is a new step at the end. Each table is created with its
-- primary key in one statement: publications of logical replication need keys,
-- and some databases refuse tables without one.
--
-- What keeps the door to more than one machine open (the table messages
-- distributed by queue_key): its keys and indexes all hold queue_key, nothing
-- references it, it has no trigger, and no statement changes queue_key: a move
-- is a DELETE and an INSERT in one statement.

-- step 1

CREATE SCHEMA IF NOT EXISTS queued;

CREATE TABLE queued.schema_version (
    version    integer     PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE queued.topics (
    id         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-zA-Z0-9._-]{1,128}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE queued.queues (
    id                        text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-zA-Z0-9._-]{1,128}$'),
    -- What messages refer to. Never reused, so that a queue made again under
    -- the id of a deleted one does not inherit its messages.
    key                       bigint  GENERATED ALWAYS AS IDENTITY UNIQUE,
    -- Null: receives from no topic.
    topic_id                  text COLLATE "C" REFERENCES queued.topics ON DELETE SET NULL,
    -- Null: a message is delivered until it is acked or expires.
    dead_queue_id             text COLLATE "C" REFERENCES queued.queues ON DELETE SET NULL,
    -- For how long a received message is hidden.
    ack_deadline_seconds      integer NOT NULL CHECK (ack_deadline_seconds > 0),
    -- For how long after its publication a message is kept.
    message_retention_seconds integer NOT NULL CHECK (message_retention_seconds > 0),
    -- {"attribute": ["value", …], …}, kept as sent. Null: every message matches.
    message_filters           json,
    -- After so many deliveries a message is exhausted. Null, or without a dead
    -- queue: never.
    message_max_deliveries    integer CHECK (message_max_deliveries > 0),
    -- For how long a new message is hidden. Null: not at all.
    delivery_delay_seconds    integer CHECK (delivery_delay_seconds > 0),
    created_at                timestamptz NOT NULL DEFAULT now(),
    updated_at                timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX queues_topic_id ON queued.queues (topic_id);
CREATE INDEX queues_dead_queue_id ON queued.queues (dead_queue_id);

-- The keys of deleted queues whose messages the cleanup still has to remove.
CREATE TABLE queued.deleted_queues (
    key        bigint      PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE queued.messages (
    id                uuid        NOT NULL, -- version 7: new rows land at the right edge of the index
    queue_key         bigint      NOT NULL, -- queues.key; no foreign key, see above
    seq               bigint      GENERATED ALWAYS AS IDENTITY, -- order among messages due at the same time
    data              json        NOT NULL, -- json and not jsonb: kept as sent
    attributes        json,                 -- an object of strings, kept as sent; null: none were sent
    size              integer     NOT NULL, -- bytes of data and attributes, bounds what one receive claims
    delivery_attempts integer     NOT NULL DEFAULT 0,
    in_flight         boolean     NOT NULL DEFAULT false, -- somebody received it, and may hold it until scheduled_at
    last_delivery     boolean     NOT NULL DEFAULT false, -- the dead queue is next, unless it is acked
    expired_at        timestamptz NOT NULL, -- from then on it is never received
    scheduled_at      timestamptz NOT NULL, -- due from then on; while in flight the end of the lease
    created_at        timestamptz NOT NULL, -- when it was published; survives moves between queues
    updated_at        timestamptz NOT NULL,
    -- The id alone is unique but for the time of a move; an ack knows nothing else.
    PRIMARY KEY (id, queue_key)
);

-- What the cleanup moves to dead queues; receives that are not a message's
-- last do not touch it.
CREATE INDEX messages_last_delivery ON queued.messages (queue_key, scheduled_at) WHERE last_delivery;

-- On more than one machine: the small tables are copied to all of them, and
-- messages are spread by queue.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        PERFORM create_reference_table('queued.topics');
        PERFORM create_reference_table('queued.queues');
        PERFORM create_reference_table('queued.deleted_queues');
        PERFORM create_distributed_table('queued.messages', 'queue_key');
    END IF;
END
$$;

-- step 2

-- One row, whose version grows with every change of what a publish or a receive
-- needs to know of topics and queues. A server remembers that, and each statement
-- that relies on it checks the version: what was answered at one server holds at
-- all of them from then on.
CREATE TABLE queued.settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint  NOT NULL
);

INSERT INTO queued.settings (version) VALUES (1);

-- Each message leaves two dead rows: the one that was received, and the one that
-- was acked. They are removed early and fast, so that the table stays small.
ALTER TABLE queued.messages SET (
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_cost_limit = 2000
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        PERFORM create_reference_table('queued.settings');
    END IF;
END
$$;

-- step 3

ALTER TABLE queued.queues
    -- Between two deliveries of a group's messages, unless the group has an
    -- interval of its own. Null: none.
    ADD COLUMN delivery_interval_ms integer CHECK (delivery_interval_ms >= 0),
    -- A group's next message comes only after the previous one was acked, or left.
    ADD COLUMN ordered boolean NOT NULL DEFAULT false,
    -- For how long messages that were consumed are kept. Null: not at all.
    ADD COLUMN consumed_retention_seconds integer CHECK (consumed_retention_seconds > 0);

ALTER TABLE queued.messages
    ADD COLUMN group_id       text COLLATE "C" CHECK (octet_length(group_id) BETWEEN 1 AND 256),
    -- SharQ's name of the message. Null: it came by another API.
    ADD COLUMN job_id         text COLLATE "C",
    -- After so many deliveries it is exhausted, whatever its queue says: moved to
    -- the dead queue or, without one, dropped. Null: as the queue says.
    ADD COLUMN max_deliveries integer CHECK (max_deliveries > 0);

-- The index that carries everything: the oldest due messages of a queue, those with
-- a group apart from the others. Every receive moves a row in it, so each further
-- index costs on every receive.
CREATE INDEX messages_due ON queued.messages (queue_key, (group_id IS NULL), scheduled_at, seq);

-- Where a group's deliveries stand. There is a row for every group that has
-- messages, from the moment that they are visible.
CREATE TABLE queued.groups (
    queue_key            bigint      NOT NULL, -- queues.key
    id                   text COLLATE "C" NOT NULL,
    -- When to look at it for a message to deliver: never later than there is one,
    -- but perhaps earlier. Infinity: when something happens to it.
    ready_at             timestamptz NOT NULL,
    front                bigint      NOT NULL DEFAULT 0, -- no message that waits, and is not in flight, has a smaller seq
    delivered_at         timestamptz, -- the last delivery; null: there was none
    limited_until        timestamptz, -- the interval after that; null: there was none
    delivery_interval_ms integer CHECK (delivery_interval_ms >= 0), -- null: the queue's
    kept                 boolean     NOT NULL DEFAULT false, -- a client has set the interval, and finds it again when there are no messages
    blocked              boolean     NOT NULL DEFAULT false, -- ready_at goes by a message that the others have to wait for
    PRIMARY KEY (queue_key, id)
);

-- The groups that may have something to deliver, the one ready longest first.
CREATE INDEX groups_ready ON queued.groups (queue_key, ready_at) WHERE ready_at < 'infinity';

-- Each delivery changes its row.
ALTER TABLE queued.groups SET (
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);

-- The messages of a group that wait, in their order.
CREATE INDEX messages_group ON queued.messages (queue_key, group_id, seq)
    WHERE group_id IS NOT NULL AND NOT in_flight;

-- When the next message of a group is due, or the next lease ends.
CREATE INDEX messages_group_due ON queued.messages (queue_key, group_id, in_flight, scheduled_at)
    WHERE group_id IS NOT NULL;

-- Jobs by their names.
CREATE INDEX messages_job ON queued.messages (queue_key, group_id, job_id, seq)
    WHERE job_id IS NOT NULL;

-- Messages that were consumed, as they were delivered, of queues that keep them.
CREATE TABLE queued.consumed (
    queue_key         bigint      NOT NULL, -- queues.key
    consumed_at       timestamptz NOT NULL,
    seq               bigint      NOT NULL, -- that of the message
    id                uuid        NOT NULL,
    group_id          text COLLATE "C",     -- null: it had none
    data              json        NOT NULL,
    attributes        json,                 -- null: none were sent
    size              integer     NOT NULL, -- bytes of data and attributes
    delivery_attempts integer     NOT NULL, -- this one included
    expired_at        timestamptz NOT NULL, -- when it would have expired
    scheduled_at      timestamptz NOT NULL, -- when it was due
    created_at        timestamptz NOT NULL,
    PRIMARY KEY (queue_key, consumed_at, seq)
);

-- Each leaves a dead row behind, where the next ones to remove are looked for.
ALTER TABLE queued.consumed SET (
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_cost_limit = 2000
);

-- What went into queues and groups and came out, by the minute, for SharQ's metrics.
CREATE TABLE queued.tallies (
    queue_key bigint      NOT NULL, -- queues.key
    minute    timestamptz NOT NULL, -- when it began
    group_id  text COLLATE "C" NOT NULL, -- empty: all of the queue
    enqueued  bigint      NOT NULL,
    dequeued  bigint      NOT NULL,
    PRIMARY KEY (queue_key, minute, group_id)
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        PERFORM create_distributed_table('queued.tallies', 'queue_key');
        PERFORM create_distributed_table('queued.groups', 'queue_key');
        PERFORM create_distributed_table('queued.consumed', 'queue_key');
    END IF;
END
$$;

-- step 4

-- What the request that published a message said of itself: its X-Request-Id and
-- its traceparent (W3C Trace Context). Null: nothing. They stay with the message
-- wherever it goes. Their lengths are not checked here: PostgreSQL would read the
-- conditions anew for every statement, which costs a publish of one a twelfth.
ALTER TABLE queued.messages
    ADD COLUMN request_id  text COLLATE "C",
    ADD COLUMN traceparent text COLLATE "C";

ALTER TABLE queued.consumed
    ADD COLUMN request_id  text COLLATE "C",
    ADD COLUMN traceparent text COLLATE "C";

-- step 5

-- The primary keys of tables that builds before the first release created without.
ALTER TABLE queued.schema_version
    DROP CONSTRAINT IF EXISTS schema_version_pkey,
    ADD PRIMARY KEY (version);

ALTER TABLE queued.settings
    ADD COLUMN IF NOT EXISTS only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row);

-- step 6

ALTER TABLE queued.queues
    -- The version of the settings with which something changed that the groups of
    -- the queue have yet to be looked at for. Null: they have been.
    ADD COLUMN groups_changed_in bigint;

-- step 7

-- SharQ's counts per minute are in the memory of each server.
DROP TABLE queued.tallies;
