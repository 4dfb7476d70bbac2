-- The tables of queued, in the schema "queued" of a PostgreSQL database that may be
-- an application's own. Each part that begins with a line "-- step N" makes version N
-- of the schema. A server applies the parts that its database does not have, in order
-- and in one transaction (migrate.go). A step that was released is never edited: a
-- change is a new step at the end of this file.
--
-- The comments below that PostgreSQL stores say what a table or a column is; psql
-- shows them with \d+. The others, like this one, say why it is so. Each table is
-- created with its primary key in one statement: publications of logical replication
-- need keys, and some databases refuse tables without one.

-- step 1

CREATE SCHEMA IF NOT EXISTS queued;

COMMENT ON SCHEMA queued IS 'The message queue server queued: topics, queues and messages';

CREATE TABLE queued.schema_version (
    version    integer     PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE queued.schema_version IS 'Versions of this schema that the database has had; the largest is the present one';

-- A server caches topics and queues. Each statement that relies on them compares the
-- version that it knows with this one: a change that one server has confirmed holds at
-- all servers.
CREATE TABLE queued.settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint  NOT NULL
);

COMMENT ON TABLE  queued.settings         IS 'The version of the settings of topics and queues, in one row';
COMMENT ON COLUMN queued.settings.version IS 'Grows with every change of topics and queues that servers cache';

INSERT INTO queued.settings (version) VALUES (1);

CREATE TABLE queued.topics (
    id         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-zA-Z0-9._-]{1,128}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE queued.topics IS 'Topics: a message published to a topic is copied to each of its queues whose filters match';

CREATE TABLE queued.queues (
    id                         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-zA-Z0-9._-]{1,128}$'),
    key                        bigint  GENERATED ALWAYS AS IDENTITY UNIQUE, -- so that a new queue with the id of a deleted one starts empty
    topic_id                   text COLLATE "C" REFERENCES queued.topics ON DELETE SET NULL,
    dead_queue_id              text COLLATE "C" REFERENCES queued.queues ON DELETE SET NULL,
    ack_deadline_seconds       integer NOT NULL CHECK (ack_deadline_seconds > 0),
    message_retention_seconds  integer NOT NULL CHECK (message_retention_seconds > 0),
    message_filters            json, -- not jsonb, which would not keep them as sent
    message_max_deliveries     integer CHECK (message_max_deliveries > 0),
    delivery_delay_seconds     integer CHECK (delivery_delay_seconds > 0),
    delivery_interval_ms       integer CHECK (delivery_interval_ms >= 0),
    ordered                    boolean NOT NULL DEFAULT false,
    consumed_retention_seconds integer CHECK (consumed_retention_seconds > 0),
    delivery_limit             integer NOT NULL GENERATED ALWAYS AS (
                                   CASE WHEN dead_queue_id IS NULL THEN 2147483647 ELSE coalesce(message_max_deliveries, 2147483647) END
                               ) STORED, -- the rule in one place; statements compare with least(delivery_limit, messages.max_deliveries)
    groups_changed_in          bigint, -- a later change asks for another check of all groups
    created_at                 timestamptz NOT NULL DEFAULT now(),
    updated_at                 timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX queues_topic_id ON queued.queues (topic_id);
CREATE INDEX queues_dead_queue_id ON queued.queues (dead_queue_id);

COMMENT ON TABLE  queued.queues                            IS 'Queues and their settings';
COMMENT ON COLUMN queued.queues.key                        IS 'What messages refer to; never reused';
COMMENT ON COLUMN queued.queues.topic_id                   IS 'The topic that the queue receives from; null: none';
COMMENT ON COLUMN queued.queues.dead_queue_id              IS 'The queue that exhausted messages move to; null: messages are never exhausted';
COMMENT ON COLUMN queued.queues.ack_deadline_seconds       IS 'How long a received message is hidden';
COMMENT ON COLUMN queued.queues.message_retention_seconds  IS 'How long after its publication a message expires';
COMMENT ON COLUMN queued.queues.message_filters            IS '{"attribute": ["value", …], …} as sent; null: every message matches';
COMMENT ON COLUMN queued.queues.message_max_deliveries     IS 'Deliveries after which a message is exhausted, if there is a dead queue; null: never';
COMMENT ON COLUMN queued.queues.delivery_delay_seconds     IS 'How long a new message is hidden; null: not at all';
COMMENT ON COLUMN queued.queues.delivery_interval_ms       IS 'Time between two deliveries from a group without an interval of its own; null: none';
COMMENT ON COLUMN queued.queues.ordered                    IS 'A message of a group is delivered only after the one before was acked or left the queue';
COMMENT ON COLUMN queued.queues.consumed_retention_seconds IS 'How long consumed messages are kept; null: not at all';
COMMENT ON COLUMN queued.queues.delivery_limit             IS 'Deliveries after which a message is exhausted; 2147483647: never';
COMMENT ON COLUMN queued.queues.groups_changed_in          IS 'Version of the settings whose change the groups have yet to be checked for; null: they have been';

CREATE TABLE queued.deleted_queues (
    key        bigint      PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE queued.deleted_queues IS 'Keys of deleted queues whose messages the cleanup still has to delete';

-- There is no foreign key to queues, which would cost a lookup and a row lock for each
-- message. Columns of fixed width that are never null come first: PostgreSQL reads those
-- at their offset, without walking over what stands before.
CREATE TABLE queued.messages (
    id                uuid        NOT NULL, -- version 7: new rows go to the right edge of the index
    queue_key         bigint      NOT NULL,
    seq               bigint      GENERATED ALWAYS AS IDENTITY,
    scheduled_at      timestamptz NOT NULL,
    expired_at        timestamptz NOT NULL,
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    bytes             integer     NOT NULL, -- what octet_length would compute from a copy of both, for each claim
    delivery_attempts integer     NOT NULL DEFAULT 0,
    in_flight         boolean     NOT NULL DEFAULT false, -- stays true when the lease ends: nothing runs at that time
    last_delivery     boolean     NOT NULL DEFAULT false, -- so that the cleanup finds exhausted messages by an index
    max_deliveries    integer     CHECK (max_deliveries > 0),
    group_id          text COLLATE "C" CHECK (octet_length(group_id) BETWEEN 1 AND 256),
    job_id            text COLLATE "C",
    trace             json, -- its size is not checked here: PostgreSQL reads checks anew for each statement, a twelfth of a publish
    attributes        json, -- not jsonb, which would not keep them as sent
    data              json        NOT NULL,
    -- The id alone is unique but for the time of a move; an ack knows only the id.
    PRIMARY KEY (id, queue_key)
) WITH (
    -- Each message leaves two dead rows: the one that was received, and the one that
    -- was acked. They are removed early and fast, so that the table stays small.
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_cost_limit = 2000
);

-- A claim changes an indexed column, so each index that a message is in costs on every
-- claim. This one carries the load: the oldest due messages of a queue. Its second
-- column keeps messages with a group apart, so that neither kind of claim walks over
-- messages of the other.
CREATE INDEX messages_due ON queued.messages (queue_key, (group_id IS NULL), scheduled_at, seq);

-- What the cleanup moves to dead queues. A claim that is not a message's last delivery
-- does not touch it.
CREATE INDEX messages_last_delivery ON queued.messages (queue_key, scheduled_at)
    WHERE last_delivery;

-- The messages of a group that wait, in their order.
CREATE INDEX messages_group ON queued.messages (queue_key, group_id, seq)
    WHERE group_id IS NOT NULL AND NOT in_flight;

-- When the next message of a group is due, or the next lease ends.
CREATE INDEX messages_group_due ON queued.messages (queue_key, group_id, in_flight, scheduled_at)
    WHERE group_id IS NOT NULL;

-- Jobs by their names.
CREATE INDEX messages_job ON queued.messages (queue_key, group_id, job_id, seq)
    WHERE job_id IS NOT NULL;

COMMENT ON TABLE  queued.messages                   IS 'Messages that are in a queue, one row for each copy; an ack deletes it';
COMMENT ON COLUMN queued.messages.id                IS 'UUID version 7; a move to another queue keeps it';
COMMENT ON COLUMN queued.messages.queue_key         IS 'queues.key of its queue, or of a queue in deleted_queues';
COMMENT ON COLUMN queued.messages.seq               IS 'Order among messages due at the same time, and of the messages of a group';
COMMENT ON COLUMN queued.messages.scheduled_at      IS 'When it is due; while it is in flight, when the lease ends';
COMMENT ON COLUMN queued.messages.expired_at        IS 'From then on it is not delivered';
COMMENT ON COLUMN queued.messages.created_at        IS 'When it was published; a move to another queue keeps it';
COMMENT ON COLUMN queued.messages.updated_at        IS 'When it was last published, delivered, returned, extended or moved';
COMMENT ON COLUMN queued.messages.bytes             IS 'Bytes of data and attributes; bounds what one receive claims';
COMMENT ON COLUMN queued.messages.delivery_attempts IS 'How often it was delivered';
COMMENT ON COLUMN queued.messages.in_flight         IS 'A consumer has received it, and holds it until scheduled_at';
COMMENT ON COLUMN queued.messages.last_delivery     IS 'Its last delivery has begun: unless it is acked, it is exhausted';
COMMENT ON COLUMN queued.messages.max_deliveries    IS 'Deliveries after which it is exhausted, beside the limit of its queue; without a dead queue it is then dropped; null: no limit of its own';
COMMENT ON COLUMN queued.messages.group_id          IS 'The group; null: none';
COMMENT ON COLUMN queued.messages.job_id            IS 'The job_id of SharQ''s API; null: it was published by another API';
COMMENT ON COLUMN queued.messages.trace             IS '{"request_id", "traceparent"}: X-Request-Id and traceparent (W3C Trace Context) of the request that published it; null: it had neither';
COMMENT ON COLUMN queued.messages.attributes        IS 'An object of strings as sent; null: none';
COMMENT ON COLUMN queued.messages.data              IS 'The payload as sent';

-- The rule of the state in one place: the server reads it here, too. Messages that have
-- expired, or whose queue was deleted, are not in it: nobody gets them any more. A step
-- that changes the columns of messages drops this view and creates it again.
CREATE VIEW queued.message_states AS
SELECT m.*,
       q.id AS queue_id,
       CASE
           WHEN m.in_flight AND m.scheduled_at > now() THEN 'in_flight'
           WHEN m.delivery_attempts >= least(q.delivery_limit, m.max_deliveries) THEN 'exhausted'
           WHEN m.scheduled_at > now() THEN 'delayed'
           ELSE 'ready'
       END AS state,
       m.ctid AS tid -- for counts of a part of the table
FROM queued.messages m
JOIN queued.queues q ON q.key = m.queue_key
WHERE m.expired_at > now();

COMMENT ON VIEW   queued.message_states          IS 'Messages with their queue and their state, except those that the cleanup still has to delete; see messages for the other columns';
COMMENT ON COLUMN queued.message_states.queue_id IS 'queues.id';
COMMENT ON COLUMN queued.message_states.state    IS 'ready: can be received now; delayed: is due later; in_flight: a consumer holds it; exhausted: was delivered as often as allowed, and nobody holds it';
COMMENT ON COLUMN queued.message_states.tid      IS 'Where the row of the message is: its ctid';

-- A claim locks the rows of groups that are ready, so that of two servers only one
-- delivers from a group at a time.
CREATE TABLE queued.groups (
    queue_key            bigint      NOT NULL,
    id                   text COLLATE "C" NOT NULL,
    ready_at             timestamptz NOT NULL,
    first_seq            bigint      NOT NULL DEFAULT 0, -- so that a claim does not walk over index entries of deleted messages
    delivered_at         timestamptz,
    limited_until        timestamptz,
    delivery_interval_ms integer     CHECK (delivery_interval_ms >= 0),
    keep_interval        boolean     NOT NULL DEFAULT false,
    blocked              boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (queue_key, id)
) WITH (
    -- Each delivery changes its row.
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);

-- The groups that may have something to deliver, the one ready longest first.
CREATE INDEX groups_ready ON queued.groups (queue_key, ready_at)
    WHERE ready_at < 'infinity';

COMMENT ON TABLE  queued.groups                      IS 'Groups of messages, and when each is to deliver next: a row for every group that has messages';
COMMENT ON COLUMN queued.groups.queue_key            IS 'queues.key';
COMMENT ON COLUMN queued.groups.ready_at             IS 'When a claim checks the group: never later than it has a message to deliver, but maybe earlier; infinity: not before something happens to it';
COMMENT ON COLUMN queued.groups.first_seq            IS 'No waiting message of the group that was never delivered has a smaller seq';
COMMENT ON COLUMN queued.groups.delivered_at         IS 'The last delivery; null: none';
COMMENT ON COLUMN queued.groups.limited_until        IS 'When the delivery interval after the last delivery ends; null: there is none';
COMMENT ON COLUMN queued.groups.delivery_interval_ms IS 'Time between two deliveries; null: that of the queue';
COMMENT ON COLUMN queued.groups.keep_interval        IS 'A client has set the interval: it is kept when there are no messages';
COMMENT ON COLUMN queued.groups.blocked              IS 'In an ordered queue: the first message is not ready, or in flight, and the others wait for it';

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
    PRIMARY KEY (queue_key, consumed_at, seq)
) WITH (
    -- Each leaves a dead row behind, where the cleanup looks for the next ones.
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_cost_limit = 2000
);

COMMENT ON TABLE  queued.consumed_messages                   IS 'Messages that were read by an API where reading consumes, of queues that keep them; other columns as in messages';
COMMENT ON COLUMN queued.consumed_messages.queue_key         IS 'queues.key';
COMMENT ON COLUMN queued.consumed_messages.seq               IS 'That of the message';
COMMENT ON COLUMN queued.consumed_messages.scheduled_at      IS 'When it was due';
COMMENT ON COLUMN queued.consumed_messages.expired_at        IS 'When it would have expired';
COMMENT ON COLUMN queued.consumed_messages.delivery_attempts IS 'Deliveries, this one included';
