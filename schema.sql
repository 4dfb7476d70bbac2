-- The tables of queued, in the schema "queued" of a PostgreSQL database that may be
-- an application's own. Each part that begins with a line "-- step N" makes version N
-- of the schema. A server applies the parts that its database does not have, in order
-- and in one transaction (migrate.go). A step that was released is never edited: a
-- change is a new step at the end of this file.
--
-- PostgreSQL stores the comments that say what a table or a column is; psql shows them
-- with \d+. The other comments, like this one, say why. Each table is created with its
-- primary key in one statement: publications of logical replication need keys, and some
-- databases refuse tables without one.

-- step 1

CREATE SCHEMA IF NOT EXISTS queued;

COMMENT ON SCHEMA queued IS 'The message queue server queued: topics, queues and messages';

CREATE TABLE queued.schema_version (
    version    integer     PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE queued.schema_version IS 'Versions of this schema that the database has had; the largest is the current one';

-- Servers cache topics and queues. Each statement that relies on the cache compares its
-- version with this one. So a change that one server has confirmed holds at all servers.
CREATE TABLE queued.settings (
    only_row                     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version                      bigint  NOT NULL,
    deduplication_window_seconds integer NOT NULL DEFAULT 300 CHECK (deduplication_window_seconds > 0), -- so that SQL functions have it too
    max_message_bytes            bigint  NOT NULL DEFAULT 1048576 CHECK (max_message_bytes > 0) -- for the same reason
);

COMMENT ON TABLE  queued.settings                              IS 'Settings of the servers, and the version of those of topics and queues, in one row';
COMMENT ON COLUMN queued.settings.version                      IS 'Grows with every change of topics and queues that servers cache';
COMMENT ON COLUMN queued.settings.deduplication_window_seconds IS 'Deduplication window of queues without one of their own: -deduplication-window of the server that started last';
COMMENT ON COLUMN queued.settings.max_message_bytes            IS 'Maximum bytes of data and attributes of a message of the SQL functions: -max-body of the server that started last';

INSERT INTO queued.settings (version) VALUES (1);

CREATE TABLE queued.topics (
    id         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-zA-Z0-9._-]{1,128}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE queued.topics IS 'Topics: a message published to a topic is copied to each of its queues whose filters match';

CREATE TABLE queued.queues (
    id                           text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-zA-Z0-9._-]{1,128}$'),
    key                          bigint  GENERATED ALWAYS AS IDENTITY UNIQUE, -- so that a new queue with the id of a deleted one starts empty
    topic_id                     text COLLATE "C" REFERENCES queued.topics ON DELETE SET NULL,
    dead_queue_id                text COLLATE "C" REFERENCES queued.queues ON DELETE SET NULL,
    ack_deadline_seconds         integer NOT NULL CHECK (ack_deadline_seconds >= 0),
    message_retention_seconds    integer NOT NULL CHECK (message_retention_seconds > 0),
    message_filters              json, -- not jsonb, which would not keep them as sent
    message_max_deliveries       integer CHECK (message_max_deliveries > 0),
    delivery_delay_seconds       integer CHECK (delivery_delay_seconds > 0),
    delivery_interval_ms         integer CHECK (delivery_interval_ms >= 0),
    ordered                      boolean NOT NULL DEFAULT false,
    consumed_retention_seconds   integer CHECK (consumed_retention_seconds > 0),
    deduplication_window_seconds integer CHECK (deduplication_window_seconds > 0),
    delivery_limit               integer NOT NULL GENERATED ALWAYS AS (
                                     CASE WHEN dead_queue_id IS NULL THEN 2147483647 ELSE coalesce(message_max_deliveries, 2147483647) END
                                 ) STORED, -- so that the rule is in one place; statements compare with least(delivery_limit, messages.max_deliveries)
    max_messages                 integer CHECK (max_messages > 0),
    full_until                   timestamptz, -- so that SQL functions need no count; it ends in case no server counts any more
    retry_backoff_seconds        integer[], -- once set, never null again: claims of such a queue set lease_end of messages
    sqs                          json,
    paused                       boolean NOT NULL DEFAULT false,
    groups_changed_in            bigint, -- not a boolean, because a later change requires another check
    created_at                   timestamptz NOT NULL DEFAULT now(),
    updated_at                   timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX queues_topic_id ON queued.queues (topic_id);
CREATE INDEX queues_dead_queue_id ON queued.queues (dead_queue_id);

COMMENT ON TABLE  queued.queues                                   IS 'Queues and their settings';
COMMENT ON COLUMN queued.queues.key                               IS 'Key that messages refer to; never reused';
COMMENT ON COLUMN queued.queues.topic_id                          IS 'Topic that the queue subscribes to; null: none';
COMMENT ON COLUMN queued.queues.dead_queue_id                     IS 'Queue that exhausted messages move to; null: messages are never exhausted';
COMMENT ON COLUMN queued.queues.ack_deadline_seconds              IS 'Time for which a received message is hidden';
COMMENT ON COLUMN queued.queues.message_retention_seconds         IS 'Time from the publish of a message to its expiry';
COMMENT ON COLUMN queued.queues.message_filters                   IS '{"attribute": ["value", …], …} as sent; null: every message matches';
COMMENT ON COLUMN queued.queues.message_max_deliveries            IS 'Deliveries after which a message is exhausted, if there is a dead queue; null: never';
COMMENT ON COLUMN queued.queues.delivery_delay_seconds            IS 'Time for which a new message is hidden; null: none';
COMMENT ON COLUMN queued.queues.delivery_interval_ms              IS 'Time between two deliveries from a group without an interval of its own; null: none';
COMMENT ON COLUMN queued.queues.ordered                           IS 'A message of a group is delivered only after the message before it was acked or has left the queue';
COMMENT ON COLUMN queued.queues.consumed_retention_seconds        IS 'Time for which consumed messages are kept; null: none';
COMMENT ON COLUMN queued.queues.deduplication_window_seconds      IS 'Time for which a message with the same deduplication id is a duplicate; null: as in settings';
COMMENT ON COLUMN queued.queues.delivery_limit                    IS 'Deliveries after which a message is exhausted; 2147483647: never';
COMMENT ON COLUMN queued.queues.retry_backoff_seconds             IS 'Delays of a message after its first failed delivery, its second, and so on; the last one repeats; null or empty: none';
COMMENT ON COLUMN queued.queues.max_messages                      IS 'Number of messages from which publishes are refused, by the last count; null: none';
COMMENT ON COLUMN queued.queues.full_until                        IS 'SQL functions refuse publishes until then, because the last count found max_messages; null: it did not';
COMMENT ON COLUMN queued.queues.sqs                               IS 'Settings that only SQS''s API has; null: none';
COMMENT ON COLUMN queued.queues.paused                            IS 'Whether messages are not delivered for now';
COMMENT ON COLUMN queued.queues.groups_changed_in                 IS 'Version of the settings with a change for which all groups must be checked; null: none';

CREATE TABLE queued.deleted_queues (
    key        bigint      PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE queued.deleted_queues IS 'Keys of deleted queues whose messages the cleanup still has to delete';

-- There is no foreign key to queues, because it would cost a lookup and a row lock for each
-- message. Columns of fixed width that are never null come first, because PostgreSQL reads
-- these at their offset, without walking over other columns.
CREATE TABLE queued.messages (
    id                       uuid        NOT NULL, -- version 7: new rows go to the right edge of the index
    queue_key                bigint      NOT NULL,
    seq                      bigint      GENERATED ALWAYS AS IDENTITY,
    scheduled_at             timestamptz NOT NULL,
    expired_at               timestamptz NOT NULL,
    created_at               timestamptz NOT NULL,
    updated_at               timestamptz NOT NULL,
    bytes                    integer     NOT NULL, -- stored, because octet_length would copy data and attributes for each claim
    delivery_attempts        integer     NOT NULL DEFAULT 0,
    in_flight                boolean     NOT NULL DEFAULT false, -- stays true when the lease ends, because no statement runs then
    last_delivery            boolean     NOT NULL DEFAULT false, -- so that the cleanup finds exhausted messages by an index
    lease_end                timestamptz, -- before the columns of variable width, because acks with a lease token read it
    max_deliveries           integer     CHECK (max_deliveries > 0),
    group_id                 text COLLATE "C" CHECK (octet_length(group_id) BETWEEN 1 AND 256),
    job_id                   text COLLATE "C",
    trace                    json, -- without a CHECK of its size: PostgreSQL parses checks for each statement, which took a twelfth of the time of a publish
    attributes               json, -- not jsonb, which would not keep them as sent
    data                     json        NOT NULL,
    last_error               text,
    last_error_at            timestamptz,
    source_queue_id          text COLLATE "C", -- not a key, so that it shows also after the queue was deleted
    source_delivery_attempts integer,
    dead_at                  timestamptz,
    received_at              timestamptz,
    sqs                      json,
    -- The id alone is unique, except during a move. It comes first, because an ack has only the id.
    PRIMARY KEY (id, queue_key)
) WITH (
    -- Each message leaves two dead rows: one from its claim, and one from its ack. They are
    -- removed early and fast, so that the table stays small.
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_cost_limit = 2000
);

-- A claim changes an indexed column, so every index that contains the message costs on
-- every claim. This index carries the load: it finds the oldest due messages of a queue. Its
-- second column separates messages with a group from the others, so that claims of one kind
-- do not walk over messages of the other kind.
CREATE INDEX messages_due ON queued.messages (queue_key, (group_id IS NULL), scheduled_at, seq);

-- Messages that the cleanup may have to move to dead queues. Only the claim of a last
-- delivery changes this index.
CREATE INDEX messages_last_delivery ON queued.messages (queue_key, scheduled_at)
    WHERE last_delivery;

-- The waiting messages of a group, in their order.
CREATE INDEX messages_group ON queued.messages (queue_key, group_id, seq)
    WHERE group_id IS NOT NULL AND NOT in_flight;

-- For the time at which the next message of a group is due, or the next lease ends.
CREATE INDEX messages_group_due ON queued.messages (queue_key, group_id, in_flight, scheduled_at)
    WHERE group_id IS NOT NULL;

-- Jobs by their names.
CREATE INDEX messages_job ON queued.messages (queue_key, group_id, job_id, seq)
    WHERE job_id IS NOT NULL;

COMMENT ON TABLE  queued.messages                          IS 'Messages in queues, one row for each copy; an ack deletes the row';
COMMENT ON COLUMN queued.messages.id                       IS 'UUID version 7; a move to another queue keeps it';
COMMENT ON COLUMN queued.messages.queue_key                IS 'queues.key or deleted_queues.key of its queue';
COMMENT ON COLUMN queued.messages.seq                      IS 'Order among messages due at the same time, and of the messages of a group';
COMMENT ON COLUMN queued.messages.scheduled_at             IS 'Due time; in flight, the end of the lease or, with a retry backoff, the due time after it';
COMMENT ON COLUMN queued.messages.expired_at               IS 'Time from which it is not delivered any more';
COMMENT ON COLUMN queued.messages.created_at               IS 'Time of the publish; a move to another queue keeps it';
COMMENT ON COLUMN queued.messages.updated_at               IS 'Time of the publish, or of the last delivery, nack, release, extension or move';
COMMENT ON COLUMN queued.messages.bytes                    IS 'Bytes of data, attributes and sqs; bounds what one receive claims';
COMMENT ON COLUMN queued.messages.delivery_attempts        IS 'Number of deliveries that count';
COMMENT ON COLUMN queued.messages.in_flight                IS 'Whether it was leased; the lease ends at lease_end or, if that is null, at scheduled_at';
COMMENT ON COLUMN queued.messages.last_delivery            IS 'Whether its last delivery has begun: without an ack it is exhausted then';
COMMENT ON COLUMN queued.messages.lease_end                IS 'In flight, in a queue with a retry backoff: the end of the lease, after which the message is delayed until scheduled_at; null: the lease ends at scheduled_at';
COMMENT ON COLUMN queued.messages.max_deliveries           IS 'Deliveries after which it is exhausted, besides the limit of its queue; without a dead queue it is deleted then; null: no limit of its own';
COMMENT ON COLUMN queued.messages.group_id                 IS 'Its group; null: none';
COMMENT ON COLUMN queued.messages.job_id                   IS 'job_id of SharQ''s API; null: it was published by another API';
COMMENT ON COLUMN queued.messages.trace                    IS '{"request_id", "traceparent"}: X-Request-Id and traceparent (W3C Trace Context) of the request that published it; null: it had neither';
COMMENT ON COLUMN queued.messages.attributes               IS 'An object of strings as sent; null: none';
COMMENT ON COLUMN queued.messages.data                     IS 'The payload as sent';
COMMENT ON COLUMN queued.messages.last_error               IS 'Error of the last nack that had one; null: none';
COMMENT ON COLUMN queued.messages.last_error_at            IS 'Time of that nack';
COMMENT ON COLUMN queued.messages.source_queue_id          IS 'In a dead queue: queues.id of the queue that it came from; null: it was published here, or redriven';
COMMENT ON COLUMN queued.messages.source_delivery_attempts IS 'Number of its deliveries in that queue, before it moved';
COMMENT ON COLUMN queued.messages.dead_at                  IS 'Time at which it moved to the dead queue';
COMMENT ON COLUMN queued.messages.received_at              IS 'Time of the first delivery by SQS''s API; null: none';
COMMENT ON COLUMN queued.messages.sqs                      IS 'What only SQS''s API has of the message: types and binary attributes; null: nothing';

-- The view defines the state of a message. Expired messages and messages of deleted queues
-- are not in it, because no consumer receives them any more. A step that changes the columns
-- of messages drops the views and creates them again, with their privileges.
CREATE VIEW queued.live_messages AS
SELECT m.*,
       q.id AS queue_id,
       CASE
           WHEN m.in_flight AND coalesce(m.lease_end, m.scheduled_at) > now() THEN 'in_flight'
           WHEN m.delivery_attempts >= least(q.delivery_limit, m.max_deliveries) THEN 'exhausted'
           WHEN m.scheduled_at > now() THEN 'delayed'
           ELSE 'ready'
       END AS state,
       m.ctid AS tid -- for counts of a part of the table
FROM queued.messages m
JOIN queued.queues q ON q.key = m.queue_key
WHERE m.expired_at > now();

COMMENT ON VIEW   queued.live_messages          IS 'Internal: messages with their queue and their state, except expired ones and those of deleted queues; other columns as in messages';
COMMENT ON COLUMN queued.live_messages.queue_id IS 'queues.id';
COMMENT ON COLUMN queued.live_messages.state    IS 'ready: can be received now; delayed: is due later; in_flight: is leased; exhausted: has no delivery left, and is not leased';
COMMENT ON COLUMN queued.live_messages.tid      IS 'ctid of the row of the message';

-- For people and programs that look at queues with SQL. Its columns stay when the tables
-- change. It does not have the data and the attributes, so that a role that may read it
-- does not see what messages contain.
CREATE VIEW queued.message_states AS
SELECT id, queue_id, state, group_id, delivery_attempts,
       CASE WHEN state = 'in_flight' THEN coalesce(lease_end, scheduled_at) ELSE scheduled_at END AS scheduled_at,
       created_at, updated_at, expired_at, bytes
FROM queued.live_messages;

COMMENT ON VIEW   queued.message_states                   IS 'Messages with their queue and their state, without their content, except expired ones and those of deleted queues';
COMMENT ON COLUMN queued.message_states.id                IS 'Id of the message';
COMMENT ON COLUMN queued.message_states.queue_id          IS 'Id of its queue';
COMMENT ON COLUMN queued.message_states.state             IS 'ready: can be received now; delayed: is due later; in_flight: is leased; exhausted: has no delivery left, and is not leased';
COMMENT ON COLUMN queued.message_states.group_id          IS 'Its group; null: none';
COMMENT ON COLUMN queued.message_states.delivery_attempts IS 'Number of deliveries that count';
COMMENT ON COLUMN queued.message_states.scheduled_at      IS 'Due time; in flight, the end of the lease';
COMMENT ON COLUMN queued.message_states.created_at        IS 'Time of the publish';
COMMENT ON COLUMN queued.message_states.updated_at        IS 'Time of the publish, or of the last delivery, nack, release, extension or move';
COMMENT ON COLUMN queued.message_states.expired_at        IS 'Time from which it is not delivered any more';
COMMENT ON COLUMN queued.message_states.bytes             IS 'Bytes of data, attributes and what only SQS''s API has';

-- A claim locks the rows of groups that are ready, so that only one server at a time
-- delivers from a group.
CREATE TABLE queued.groups (
    queue_key            bigint      NOT NULL,
    id                   text COLLATE "C" NOT NULL,
    ready_at             timestamptz NOT NULL,
    first_seq            bigint      NOT NULL DEFAULT 0, -- so that a claim does not walk over index entries of deleted messages
    first_lease_end      timestamptz NOT NULL DEFAULT '-infinity', -- for the same reason
    delivered_at         timestamptz,
    limited_until        timestamptz,
    delivery_interval_ms integer     CHECK (delivery_interval_ms >= 0),
    keep_interval        boolean     NOT NULL DEFAULT false,
    blocked              boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (queue_key, id)
) WITH (
    -- Each delivery updates the row of its group, but no column that is indexed. So the new
    -- version needs no index entry, if it has space on the same page.
    fillfactor = 20,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);

COMMENT ON TABLE  queued.groups                      IS 'Groups that have messages, an interval of their own, or a running delivery interval';
COMMENT ON COLUMN queued.groups.queue_key            IS 'queues.key';
COMMENT ON COLUMN queued.groups.ready_at             IS 'Time from which claims check the group: at the latest when it has a message to deliver, but maybe earlier; infinity: only after a change of the group';
COMMENT ON COLUMN queued.groups.first_seq            IS 'Lower bound of the seq of messages that are not marked in_flight';
COMMENT ON COLUMN queued.groups.first_lease_end      IS 'Lower bound of the scheduled_at of messages that are marked in_flight; infinity: none is';
COMMENT ON COLUMN queued.groups.delivered_at         IS 'Time of the last delivery; null: none';
COMMENT ON COLUMN queued.groups.limited_until        IS 'End of the delivery interval after the last delivery; null: none';
COMMENT ON COLUMN queued.groups.delivery_interval_ms IS 'Time between two deliveries; null: that of the queue';
COMMENT ON COLUMN queued.groups.keep_interval        IS 'Whether a client has set the interval, so that it is kept without messages';
COMMENT ON COLUMN queued.groups.blocked              IS 'In an ordered queue: whether messages may wait for the first one, which is not ready or in flight';

-- The groups that may have something to deliver, in the order in which claims visit them. A
-- trigger of groups writes it (functions_claim.sql). It is not an index of groups, because
-- then each delivery would add an entry for its group to all indexes of groups. PostgreSQL
-- cannot remove these while an old transaction is open, and lookups of the group would
-- walk over them.
CREATE TABLE queued.ready_groups (
    queue_key bigint      NOT NULL,
    ready_at  timestamptz NOT NULL,
    id        text COLLATE "C" NOT NULL,
    PRIMARY KEY (queue_key, ready_at, id)
) WITH (
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);

COMMENT ON TABLE  queued.ready_groups           IS 'Groups whose ready_at is not infinity';
COMMENT ON COLUMN queued.ready_groups.queue_key IS 'groups.queue_key';
COMMENT ON COLUMN queued.ready_groups.ready_at  IS 'groups.ready_at';
COMMENT ON COLUMN queued.ready_groups.id        IS 'groups.id';

-- The functions for applications (functions_public.sql) lock and change groups at the commit
-- only, because other statements wait for these locks. Until then a row here stands for each
-- message of a group that the transaction has published, acked or nacked. A deferred trigger
-- deletes the row at the commit. So no transaction sees rows of another one, and the table
-- needs no log.
CREATE UNLOGGED TABLE queued.group_changes (
    xid        xid8    NOT NULL,
    message_id uuid    NOT NULL,
    queue_key  bigint  NOT NULL,
    group_id   text COLLATE "C" NOT NULL,
    is_new     boolean NOT NULL,
    PRIMARY KEY (xid, message_id, queue_key)
);

COMMENT ON TABLE  queued.group_changes            IS 'Messages with a group that a transaction of an application has changed, until its commit; empty for all others';
COMMENT ON COLUMN queued.group_changes.xid        IS 'The transaction';
COMMENT ON COLUMN queued.group_changes.message_id IS 'messages.id, maybe of a message that is deleted now';
COMMENT ON COLUMN queued.group_changes.queue_key  IS 'queues.key';
COMMENT ON COLUMN queued.group_changes.group_id   IS 'groups.id';
COMMENT ON COLUMN queued.group_changes.is_new     IS 'Whether the message came into the queue in this transaction, so that it gets its seq at the commit';

CREATE TYPE queued.delivery AS (
    id                uuid,
    queue_id          text,
    data              json,
    attributes        json,
    group_id          text,
    delivery_attempts integer,
    scheduled_at      timestamptz,
    expired_at        timestamptz,
    created_at        timestamptz,
    updated_at        timestamptz
);

COMMENT ON TYPE   queued.delivery                   IS 'A message that queued.receive returns';
COMMENT ON COLUMN queued.delivery.id                IS 'Id of the message';
COMMENT ON COLUMN queued.delivery.queue_id          IS 'Id of its queue';
COMMENT ON COLUMN queued.delivery.data              IS 'The payload as sent';
COMMENT ON COLUMN queued.delivery.attributes        IS 'An object of strings as sent; null: none';
COMMENT ON COLUMN queued.delivery.group_id          IS 'Its group; null: none';
COMMENT ON COLUMN queued.delivery.delivery_attempts IS 'Number of deliveries that count, including this one';
COMMENT ON COLUMN queued.delivery.scheduled_at      IS 'End of the lease, and the lease token';
COMMENT ON COLUMN queued.delivery.expired_at        IS 'Time from which it is not delivered any more';
COMMENT ON COLUMN queued.delivery.created_at        IS 'Time of the publish';
COMMENT ON COLUMN queued.delivery.updated_at        IS 'Time of this delivery';

CREATE TABLE queued.consumed_messages (
    queue_key         bigint      NOT NULL,
    consumed_at       timestamptz NOT NULL,
    seq               bigint      NOT NULL,
    id                uuid        NOT NULL,
    scheduled_at      timestamptz NOT NULL,
    expired_at        timestamptz NOT NULL,
    created_at        timestamptz NOT NULL,
    bytes             integer     NOT NULL,
    delivery_attempts integer     NOT NULL,
    group_id          text COLLATE "C",
    job_id            text COLLATE "C",
    trace             json,
    attributes        json,
    data              json        NOT NULL,
    sqs               json,
    PRIMARY KEY (queue_key, consumed_at, seq)
) WITH (
    -- Each message leaves a dead row at the place where the cleanup searches.
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_cost_limit = 2000
);

COMMENT ON TABLE  queued.consumed_messages                   IS 'Consumed messages of queues that keep them; other columns as in messages';
COMMENT ON COLUMN queued.consumed_messages.queue_key         IS 'queues.key';
COMMENT ON COLUMN queued.consumed_messages.seq               IS 'seq of the message';
COMMENT ON COLUMN queued.consumed_messages.scheduled_at      IS 'Time at which it was due';
COMMENT ON COLUMN queued.consumed_messages.expired_at        IS 'Time at which it would have expired';
COMMENT ON COLUMN queued.consumed_messages.delivery_attempts IS 'Number of deliveries, including the one that consumed it';

-- A publish inserts the ids of its messages first, in order of the primary key, so that
-- publishes do not deadlock. A row that is past its window is replaced.
CREATE TABLE queued.deduplications (
    queue_key  bigint      NOT NULL,
    id         text COLLATE "C" NOT NULL,
    message_id uuid        NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (queue_key, id)
) WITH (
    -- Each message leaves a dead row at the place where the cleanup searches.
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);

-- The entries that the cleanup deletes.
CREATE INDEX deduplications_expires_at ON queued.deduplications (expires_at);

COMMENT ON TABLE  queued.deduplications            IS 'Deduplication ids of published messages: within its window, a message with the same id is not stored again';
COMMENT ON COLUMN queued.deduplications.queue_key  IS 'queues.key';
COMMENT ON COLUMN queued.deduplications.id         IS 'Deduplication id as sent; or an Idempotency-Key, a line feed, and the position of the message in the request';
COMMENT ON COLUMN queued.deduplications.message_id IS 'messages.id of the first message, which may be in another queue or deleted';
COMMENT ON COLUMN queued.deduplications.created_at IS 'Time of the publish of the first message';
COMMENT ON COLUMN queued.deduplications.expires_at IS 'End of the window';

-- A server does a step of a task in one transaction, which locks the row of the task. So each
-- step is done by one server, and by another one if a server ends.
CREATE TABLE queued.move_tasks (
    id                      uuid        PRIMARY KEY,
    source_queue_key        bigint      NOT NULL REFERENCES queued.queues (key) ON DELETE CASCADE,
    destination_queue_id    text COLLATE "C", -- not a foreign key, because the task fails if the queue is deleted
    max_messages_per_second integer     CHECK (max_messages_per_second > 0),
    status                  text        NOT NULL DEFAULT 'RUNNING' CHECK (status IN ('RUNNING', 'COMPLETED', 'CANCELLED', 'FAILED')),
    failure                 text,
    moved                   bigint      NOT NULL DEFAULT 0,
    to_move                 bigint      NOT NULL,
    last_seq                bigint      NOT NULL,
    started_at              timestamptz NOT NULL DEFAULT now(),
    next_step_at            timestamptz NOT NULL DEFAULT now()
);

-- A queue has one running task.
CREATE UNIQUE INDEX move_tasks_running ON queued.move_tasks (source_queue_key)
    WHERE status = 'RUNNING';

COMMENT ON TABLE  queued.move_tasks                         IS 'Tasks of SQS''s API that move the messages of dead queues, and the last ten of each queue that have ended';
COMMENT ON COLUMN queued.move_tasks.id                      IS 'Id in its handle; UUID version 7';
COMMENT ON COLUMN queued.move_tasks.source_queue_key        IS 'queues.key of the dead queue';
COMMENT ON COLUMN queued.move_tasks.destination_queue_id    IS 'queues.id of the queue that messages move to; null: each moves to the queue that it came from';
COMMENT ON COLUMN queued.move_tasks.max_messages_per_second IS 'Maximum number of messages that move in a second; null: no limit';
COMMENT ON COLUMN queued.move_tasks.status                  IS 'RUNNING until it has ended';
COMMENT ON COLUMN queued.move_tasks.failure                 IS 'Why it failed; null: it did not';
COMMENT ON COLUMN queued.move_tasks.moved                   IS 'Number of messages that have moved';
COMMENT ON COLUMN queued.move_tasks.to_move                 IS 'Number of messages that waited at the start, counted to 100000';
COMMENT ON COLUMN queued.move_tasks.last_seq                IS 'Largest messages.seq at the start: later messages stay';
COMMENT ON COLUMN queued.move_tasks.started_at              IS 'Time of its start: messages that are due later stay';
COMMENT ON COLUMN queued.move_tasks.next_step_at            IS 'Time from which a server does the next step';

-- step 2

-- The rows of enqueues and of dequeues are apart, so that no dequeue waits for the commit of
-- an enqueue. The table needs no log: a crash of PostgreSQL loses ten minutes of counts, and
-- so the count of a dequeue waits for no fsync.
CREATE UNLOGGED TABLE queued.job_counts (
    minute    timestamptz NOT NULL,
    queue_key bigint      NOT NULL,
    group_id  text COLLATE "C" NOT NULL,
    dequeued  boolean     NOT NULL,
    jobs      bigint      NOT NULL,
    PRIMARY KEY (minute, queue_key, group_id, dequeued)
) WITH (
    -- As for groups: an update needs no index entry, if it has space on the same page.
    fillfactor = 20,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);

COMMENT ON TABLE  queued.job_counts           IS 'Jobs that were enqueued and dequeued by SharQ''s API in each of the last ten minutes';
COMMENT ON COLUMN queued.job_counts.minute    IS 'Beginning of the minute';
COMMENT ON COLUMN queued.job_counts.queue_key IS 'queues.key';
COMMENT ON COLUMN queued.job_counts.group_id  IS 'Group of the jobs; default: also messages without a group';
COMMENT ON COLUMN queued.job_counts.dequeued  IS 'Whether the jobs were dequeued; otherwise, they were enqueued';
COMMENT ON COLUMN queued.job_counts.jobs      IS 'Number of jobs';

-- step 3

-- A queue has a home, a small number that is fixed when it is created. All rows of the large
-- tables that belong to the queue have it, so that these tables can be distributed by it over
-- servers of PostgreSQL, and a statement about one home is about one server. All homes are 0
-- unless Citus distributes the tables. A statement that has the key of a queue needs no lookup
-- of the home: it is key >> 48.
-- It is in no index, so that it costs nothing where there is only one.
ALTER TABLE queued.queues            ADD COLUMN home smallint NOT NULL GENERATED ALWAYS AS ((key >> 48)::smallint) STORED;
ALTER TABLE queued.deleted_queues    ADD COLUMN home smallint NOT NULL GENERATED ALWAYS AS ((key >> 48)::smallint) STORED;
ALTER TABLE queued.messages          ADD COLUMN home smallint NOT NULL DEFAULT 0;
ALTER TABLE queued.groups            ADD COLUMN home smallint NOT NULL DEFAULT 0;
ALTER TABLE queued.ready_groups      ADD COLUMN home smallint NOT NULL DEFAULT 0;
ALTER TABLE queued.consumed_messages ADD COLUMN home smallint NOT NULL DEFAULT 0;
ALTER TABLE queued.deduplications    ADD COLUMN home smallint NOT NULL DEFAULT 0;

-- As before, with the home.
CREATE OR REPLACE VIEW queued.live_messages AS
SELECT m.id, m.queue_key, m.seq, m.scheduled_at, m.expired_at, m.created_at, m.updated_at, m.bytes, m.delivery_attempts,
       m.in_flight, m.last_delivery, m.lease_end, m.max_deliveries, m.group_id, m.job_id, m.trace, m.attributes, m.data,
       m.last_error, m.last_error_at, m.source_queue_id, m.source_delivery_attempts, m.dead_at, m.received_at, m.sqs,
       q.id AS queue_id,
       CASE
           WHEN m.in_flight AND coalesce(m.lease_end, m.scheduled_at) > now() THEN 'in_flight'
           WHEN m.delivery_attempts >= least(q.delivery_limit, m.max_deliveries) THEN 'exhausted'
           WHEN m.scheduled_at > now() THEN 'delayed'
           ELSE 'ready'
       END AS state,
       m.ctid AS tid,
       m.home
FROM queued.messages m
JOIN queued.queues q ON q.key = m.queue_key
WHERE m.expired_at > now();

COMMENT ON COLUMN queued.queues.key             IS 'Key that messages refer to; never reused; the bits above the lowest 48 are the home';
COMMENT ON COLUMN queued.queues.home            IS 'Home of the rows that belong to the queue; 0 unless Citus distributes the tables';
COMMENT ON COLUMN queued.deleted_queues.home    IS 'queues.home';
COMMENT ON COLUMN queued.messages.home          IS 'queues.home';
COMMENT ON COLUMN queued.groups.home            IS 'queues.home';
COMMENT ON COLUMN queued.ready_groups.home      IS 'queues.home';
COMMENT ON COLUMN queued.consumed_messages.home IS 'queues.home';
COMMENT ON COLUMN queued.deduplications.home    IS 'queues.home';

-- step 4

-- Only functions have changed.

-- step 5

-- As step 3 did for the other large tables.
ALTER TABLE queued.job_counts ADD COLUMN home smallint NOT NULL DEFAULT 0;

COMMENT ON COLUMN queued.job_counts.home IS 'queues.home';

-- settle_groups sets it.
ALTER TABLE queued.messages ALTER COLUMN seq SET GENERATED BY DEFAULT;
