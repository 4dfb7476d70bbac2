-- Functions of the schema that the server calls. They are created again after the steps of
-- schema.sql. A change of a function is a new step, maybe an empty one, and must not break
-- older servers.

-- The trigger of groups that writes ready_groups.
CREATE OR REPLACE FUNCTION queued.change_ready_groups() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.ready_at < 'infinity' AND NEW.ready_at < 'infinity' THEN
        UPDATE queued.ready_groups
        SET ready_at = NEW.ready_at
        WHERE home = OLD.home
            AND queue_key = OLD.queue_key
            AND ready_at = OLD.ready_at
            AND id = OLD.id;
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' AND OLD.ready_at < 'infinity' THEN
        DELETE FROM queued.ready_groups
        WHERE home = OLD.home
            AND queue_key = OLD.queue_key
            AND ready_at = OLD.ready_at
            AND id = OLD.id;
    END IF;
    IF TG_OP <> 'DELETE' AND NEW.ready_at < 'infinity' THEN
        INSERT INTO queued.ready_groups (home, queue_key, ready_at, id)
        VALUES (NEW.home, NEW.queue_key, NEW.ready_at, NEW.id);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION queued.change_ready_groups IS 'Internal: the trigger of groups';

-- Three triggers, because most changes of a group leave its ready_at, and cost nothing then.
CREATE OR REPLACE TRIGGER ready_group_created AFTER INSERT ON queued.groups
    FOR EACH ROW WHEN (NEW.ready_at < 'infinity')
    EXECUTE FUNCTION queued.change_ready_groups();
CREATE OR REPLACE TRIGGER ready_group_changed AFTER UPDATE ON queued.groups
    FOR EACH ROW WHEN (OLD.ready_at <> NEW.ready_at)
    EXECUTE FUNCTION queued.change_ready_groups();
CREATE OR REPLACE TRIGGER ready_group_deleted AFTER DELETE ON queued.groups
    FOR EACH ROW WHEN (OLD.ready_at < 'infinity')
    EXECUTE FUNCTION queued.change_ready_groups();

-- For connections with session_replication_role = replica, too.
ALTER TABLE queued.groups ENABLE ALWAYS TRIGGER ready_group_created;
ALTER TABLE queued.groups ENABLE ALWAYS TRIGGER ready_group_changed;
ALTER TABLE queued.groups ENABLE ALWAYS TRIGGER ready_group_deleted;

-- A claim of messages with a group. It locks groups that are ready and that no other
-- transaction has locked, in the order in which they became ready. If waits is true, it
-- waits for the lock of the first one: most likely for a publish that is about to commit.
-- Then it takes messages from the groups in turns, and sets the time at which claims check
-- each group again. From a group of an ordered queue it takes the first message, if no other
-- one is in flight. With takes_runs it takes all from the first one up to one that is not due
-- or in flight, and fills up with those of the next group. It returns the messages as they
-- are now, or as they were if they are consumed. It does nothing if the settings of queues
-- have changed since that version.
--
-- Statements are apart where the later one must see what was committed before a lock, or
-- what the earlier one has changed. A group is looked up backwards (BETWEEN, ORDER BY id
-- DESC), because its live version is mostly the last of its index entries.
CREATE OR REPLACE FUNCTION queued.claim_groups(
    key                bigint,      -- queues.key
    settings_version   bigint,
    ready_since        timestamptz, -- groups that are ready since before are left out
    visits             integer,     -- maximum number of groups
    waits              boolean,
    interval_ms        integer,     -- delivery interval of groups without one of their own
    in_order           boolean,     -- queues.ordered
    max_attempts       integer,     -- queues.delivery_limit
    max_messages       integer,
    max_bytes          bigint,      -- exceeded by a single message
    lease_seconds      integer,     -- null: consume the messages
    retry_backoff      integer[] DEFAULT NULL, -- queues.retry_backoff_seconds
    sets_received_at   boolean DEFAULT false,
    takes_runs         boolean DEFAULT false -- of an ordered queue
) RETURNS TABLE (
    message            queued.messages,
    was_due_at         timestamptz,
    nth                bigint,      -- from 1, in the order of delivery
    was_limited_until  timestamptz, -- groups.limited_until before and after the delivery
    now_limited_until  timestamptz,
    claimed_at         timestamptz,
    checked_from       timestamptz  -- no group is ready since an earlier time, but those that others have locked
)
LANGUAGE plpgsql
AS $$
DECLARE
    own_home     CONSTANT smallint := key >> 48; -- queues.home
    runs         CONSTANT boolean := in_order AND takes_runs;
    locked       tid[];
    ended        text[]; -- groups with more ended leases than a claim reads
    moment       timestamptz;
    leased_until timestamptz;
    later        timestamptz; -- when groups with only exhausted or expired messages are checked again
    tids         tid[];
    due_times    timestamptz[];
    limits       timestamptz[];
    next_limits  timestamptz[];
    taken_from   text[]; -- groups
BEGIN
    FOR round IN 1..10 LOOP -- visited groups may have no message to deliver
        IF waits THEN
            PERFORM
            FROM queued.ready_groups r
            CROSS JOIN LATERAL (
                SELECT
                FROM queued.groups
                WHERE queue_key = key
                    AND home = own_home
                    AND id BETWEEN r.id AND r.id
                ORDER BY id DESC
                LIMIT 1
                FOR UPDATE
            ) g
            WHERE r.queue_key = key
                AND r.home = own_home
                AND r.ready_at >= ready_since
                AND r.ready_at <= now()
                AND (SELECT s.version FROM queued.settings s) = settings_version
            ORDER BY r.ready_at
            LIMIT 1;
        END IF;

        moment := clock_timestamp();
        SELECT array_agg(v.tid), min(v.ready_at), array_agg(v.id) FILTER (WHERE (
                   SELECT true
                   FROM queued.messages m
                   WHERE m.queue_key = key
                       AND m.home = own_home
                       AND m.group_id = v.id
                       AND m.in_flight
                       AND m.scheduled_at >= v.first_lease_end
                       AND m.scheduled_at <= moment
                   ORDER BY m.scheduled_at
                   LIMIT 1 OFFSET 999
               ))
        INTO locked, checked_from, ended
        FROM (
            SELECT g.*
            FROM queued.ready_groups r
            CROSS JOIN LATERAL (
                SELECT ctid AS tid, id, ready_at, first_lease_end
                FROM queued.groups
                WHERE queue_key = key
                    AND home = own_home
                    AND id BETWEEN r.id AND r.id
                    AND ready_at >= ready_since
                    AND ready_at <= moment
                ORDER BY id DESC
                LIMIT 1
                FOR UPDATE SKIP LOCKED
            ) g
            WHERE r.queue_key = key
                AND r.home = own_home
                AND r.ready_at >= ready_since
                AND r.ready_at <= moment
                AND (SELECT s.version FROM queued.settings s) = settings_version
            ORDER BY r.ready_at
            LIMIT visits
        ) v;
        EXIT WHEN locked IS NULL;

        -- The next statement finds ended leases in the order in which they ended, and another index
        -- would cost on every claim. If there are too many, they become waiting messages.
        IF ended IS NOT NULL THEN
            WITH found AS MATERIALIZED (
                SELECT m.tid
                FROM unnest(ended) AS u (id)
                CROSS JOIN LATERAL (
                    SELECT m.ctid AS tid
                    FROM queued.messages m
                    WHERE m.queue_key = key
                        AND m.home = own_home
                        AND m.group_id = u.id
                        AND m.in_flight
                        AND m.scheduled_at <= moment
                    ORDER BY m.scheduled_at
                    LIMIT 10000
                    FOR UPDATE SKIP LOCKED
                ) m
            ), returned AS (
                UPDATE queued.messages m
                SET in_flight = false
                FROM found
                WHERE m.ctid = found.tid
                    AND m.home = own_home
                RETURNING m.group_id, m.seq
            )
            UPDATE queued.groups g
            SET first_seq = least(g.first_seq, r.seq)
            FROM (SELECT group_id, min(seq) AS seq FROM returned GROUP BY group_id) r
            WHERE g.queue_key = key
                AND g.home = own_home
                AND g.id = r.group_id;
            CONTINUE;
        END IF;

        -- Leases and intervals count from here, not from now(): this transaction may have
        -- waited for the locks. No message is taken from a group that is limited or waits for
        -- the end of a lease, one from a group with an interval, and up to its share from any
        -- other group.
        moment := clock_timestamp();
        leased_until := moment + make_interval(secs => lease_seconds);
        later := moment + interval '10 seconds';
        WITH visited AS MATERIALIZED (
            SELECT g.id, g.first_seq, g.first_lease_end, g.limited_until, u.place,
                   moment + make_interval(secs => coalesce(g.delivery_interval_ms, interval_ms) / 1000.0) AS next_limit,
                   CASE
                       WHEN in_order AND NOT runs OR coalesce(g.delivery_interval_ms, interval_ms) > 0 THEN 1
                       WHEN runs THEN max_messages
                       ELSE max_messages / cardinality(locked) + 1
                   END AS share,
                   CASE WHEN runs THEN (
                       SELECT min(m.seq)
                       FROM queued.messages m
                       WHERE m.queue_key = key
                           AND m.home = own_home
                           AND m.group_id = g.id
                           AND m.in_flight
                           AND m.scheduled_at >= g.first_lease_end
                           AND m.scheduled_at > moment
                   ) END AS leased_seq
            FROM unnest(locked) WITH ORDINALITY AS u (tid, place)
            JOIN queued.groups g ON g.ctid = u.tid AND g.home = own_home
            WHERE (g.limited_until <= moment) IS NOT FALSE
                AND (NOT in_order OR runs OR (
                    SELECT true
                    FROM queued.messages m
                    WHERE m.queue_key = key
                        AND m.home = own_home
                        AND m.group_id = g.id
                        AND m.in_flight
                        AND m.scheduled_at >= g.first_lease_end
                        AND m.scheduled_at > moment
                    ORDER BY m.scheduled_at DESC
                    LIMIT 1
                ) IS NOT TRUE)
        ), fronts AS MATERIALIZED (
            SELECT f.*, g.id, g.place, g.limited_until, g.next_limit, row_number() OVER front AS turn,
                   bool_and(f.scheduled_at <= moment AND f.alive AND (f.seq < g.leased_seq) IS NOT FALSE) OVER front AS next
            FROM visited g
            -- The first due messages of the group, at most its share. They wait, or their lease has
            -- ended. In an ordered queue they also contain messages that are not due or not alive,
            -- because later messages wait for them.
            CROSS JOIN LATERAL (
                SELECT *
                FROM (
                    (
                        SELECT m.ctid AS tid, m.seq, m.scheduled_at, m.expired_at, m.bytes, m.in_flight, m.delivery_attempts < least(max_attempts, m.max_deliveries) AS alive
                        FROM queued.messages m
                        WHERE m.queue_key = key
                            AND m.home = own_home
                            AND m.group_id = g.id
                            AND NOT m.in_flight
                            AND m.seq >= g.first_seq
                            AND m.expired_at > moment
                            AND (in_order OR m.scheduled_at <= moment AND m.delivery_attempts < least(max_attempts, m.max_deliveries))
                        ORDER BY m.seq
                        LIMIT g.share
                    )
                    UNION ALL
                    (
                        SELECT m.ctid, m.seq, m.scheduled_at, m.expired_at, m.bytes, m.in_flight, m.delivery_attempts < least(max_attempts, m.max_deliveries)
                        FROM queued.messages m
                        WHERE m.queue_key = key
                            AND m.home = own_home
                            AND m.group_id = g.id
                            AND m.in_flight
                            AND m.scheduled_at >= g.first_lease_end
                            AND m.scheduled_at <= moment
                            AND m.expired_at > moment
                            AND (in_order OR m.delivery_attempts < least(max_attempts, m.max_deliveries))
                        ORDER BY m.scheduled_at
                        LIMIT 1000
                    )
                ) either
                ORDER BY seq
                LIMIT g.share
            ) f
            WINDOW front AS (PARTITION BY g.place ORDER BY f.seq)
        ), fitting AS MATERIALIZED (
            SELECT f.*, row_number() OVER turns AS turn_of_all, sum(f.bytes) OVER turns AS total
            FROM fronts f
            WHERE f.next
            WINDOW turns AS (ORDER BY CASE WHEN runs THEN f.place END, f.turn, f.place)
        )
        SELECT array_agg(t.tid ORDER BY t.turn_of_all), array_agg(t.scheduled_at ORDER BY t.turn_of_all),
               array_agg(t.limited_until ORDER BY t.turn_of_all), array_agg(t.next_limit ORDER BY t.turn_of_all), array_agg(t.id)
        INTO tids, due_times, limits, next_limits, taken_from
        FROM (
            SELECT l.*, row_number() OVER (PARTITION BY l.id ORDER BY l.turn) = l.turn AS follows
            FROM (
                SELECT m.ctid AS tid, f.id, f.scheduled_at, f.turn, f.turn_of_all, f.limited_until, f.next_limit
                FROM fitting f
                JOIN queued.messages m ON m.ctid = f.tid AND m.home = own_home
                WHERE f.turn_of_all <= max_messages
                    AND (f.total <= max_bytes OR f.total = f.bytes)
                    AND m.in_flight = f.in_flight
                    AND m.scheduled_at IS NOT DISTINCT FROM f.scheduled_at
                FOR UPDATE OF m SKIP LOCKED
            ) l
        ) t
        WHERE t.follows -- a run ends at a message that another transaction has locked or changed
            OR NOT runs;

        IF lease_seconds IS NULL THEN
            RETURN QUERY
            DELETE FROM queued.messages m
            USING unnest(tids, due_times, limits, next_limits) WITH ORDINALITY AS t (tid, due_at, limited_until, next_limit, nth)
            WHERE m.ctid = t.tid
                AND m.home = own_home
            RETURNING m, t.due_at, t.nth, t.limited_until, t.next_limit, moment, checked_from;
        ELSIF retry_backoff IS NOT NULL THEN -- like claimBackoffSQL (claim.go)
            RETURN QUERY
            UPDATE queued.messages m
            SET in_flight = true, delivery_attempts = m.delivery_attempts + 1, last_delivery = m.delivery_attempts + 1 >= least(max_attempts, m.max_deliveries),
                scheduled_at = (leased_until AT TIME ZONE 'UTC' + make_interval(secs => CASE
                    WHEN m.delivery_attempts + 1 >= least(max_attempts, m.max_deliveries) THEN 0
                    ELSE coalesce(retry_backoff[least(m.delivery_attempts + 1, cardinality(retry_backoff))], 0)
                END)) AT TIME ZONE 'UTC',
                lease_end = leased_until, updated_at = moment, received_at = CASE WHEN sets_received_at THEN coalesce(m.received_at, moment) ELSE m.received_at END
            FROM unnest(tids, due_times, limits, next_limits) WITH ORDINALITY AS t (tid, due_at, limited_until, next_limit, nth)
            WHERE m.ctid = t.tid
                AND m.home = own_home
            RETURNING m, t.due_at, t.nth, t.limited_until, t.next_limit, moment, checked_from;
        ELSE
            RETURN QUERY
            UPDATE queued.messages m
            SET in_flight = true, delivery_attempts = m.delivery_attempts + 1, last_delivery = m.delivery_attempts + 1 >= least(max_attempts, m.max_deliveries),
                scheduled_at = leased_until, updated_at = moment, received_at = CASE WHEN sets_received_at THEN coalesce(m.received_at, moment) ELSE m.received_at END
            FROM unnest(tids, due_times, limits, next_limits) WITH ORDINALITY AS t (tid, due_at, limited_until, next_limit, nth)
            WHERE m.ctid = t.tid
                AND m.home = own_home
            RETURNING m, t.due_at, t.nth, t.limited_until, t.next_limit, moment, checked_from;
        END IF;

        -- Set the time at which claims check the groups again: now, if there are messages left
        -- to deliver; else when a message becomes due, or when a lease ends. A group from which
        -- no message was taken, although it has one to deliver, keeps its turn. A group with
        -- only exhausted or expired messages is checked from time to time: nothing tells when
        -- these are deleted, or can be delivered because the dead queue was deleted.
        --
        -- Acked messages leave dead entries in the indexes until a vacuum, and a vacuum keeps
        -- them while an old transaction is open. first_seq and first_lease_end keep scans from
        -- walking over these again and again. A first_lease_end that is not past is not read
        -- anew, and may be too early, except in an ordered queue, where a group has few leases.
        WITH visited AS MATERIALIZED (
            SELECT u.tid, g.id, g.first_seq, g.keep_interval, t.taken,
                   least(g.first_lease_end, CASE WHEN t.taken THEN leased_until END) AS first_lease_end,
                   CASE WHEN t.taken THEN moment + make_interval(secs => coalesce(g.delivery_interval_ms, interval_ms) / 1000.0) ELSE g.limited_until END AS limited_until
            FROM unnest(locked) AS u (tid)
            JOIN queued.groups g ON g.ctid = u.tid AND g.home = own_home
            CROSS JOIN LATERAL (SELECT (g.id = ANY (taken_from)) IS TRUE AS taken) t
        ), bounded AS MATERIALIZED (
            SELECT g.tid, g.id, g.keep_interval, g.taken, g.limited_until,
                   CASE WHEN in_order OR g.first_lease_end <= moment THEN coalesce((
                       SELECT m.scheduled_at
                       FROM queued.messages m
                       WHERE m.queue_key = key
                           AND m.home = own_home
                           AND m.group_id = g.id
                           AND m.in_flight
                           AND m.scheduled_at >= g.first_lease_end
                       ORDER BY m.scheduled_at
                       LIMIT 1
                   ), 'infinity') ELSE g.first_lease_end END AS first_lease_end,
                   coalesce((
                       SELECT m.seq
                       FROM queued.messages m
                       WHERE m.queue_key = key
                           AND m.home = own_home
                           AND m.group_id = g.id
                           AND NOT m.in_flight
                           AND m.seq >= g.first_seq
                       ORDER BY m.seq
                       LIMIT 1
                   ), 9223372036854775807) AS first_seq
            FROM visited g
        ), checked AS MATERIALIZED (
            SELECT g.*, (g.limited_until <= moment) IS NOT FALSE AS free,
                   g.first_seq < 9223372036854775807 OR g.first_lease_end < 'infinity' AS holds,
                   CASE
                       WHEN f.seq < CASE WHEN runs THEN coalesce((
                           SELECT min(m.seq)
                           FROM queued.messages m
                           WHERE m.queue_key = key
                               AND m.home = own_home
                               AND m.group_id = g.id
                               AND m.in_flight
                               AND m.scheduled_at >= g.first_lease_end
                               AND m.scheduled_at > moment
                       ), 9223372036854775807) END THEN CASE WHEN f.alive THEN least(f.scheduled_at, f.expired_at) END
                       WHEN runs THEN (
                           SELECT m.scheduled_at
                           FROM queued.messages m
                           WHERE m.queue_key = key
                               AND m.home = own_home
                               AND m.group_id = g.id
                               AND m.in_flight
                               AND m.scheduled_at >= g.first_lease_end
                               AND m.scheduled_at > moment
                           ORDER BY m.scheduled_at
                           LIMIT 1
                       )
                       WHEN in_order THEN coalesce((
                           SELECT m.scheduled_at
                           FROM queued.messages m
                           WHERE m.queue_key = key
                               AND m.home = own_home
                               AND m.group_id = g.id
                               AND m.in_flight
                               AND m.scheduled_at >= g.first_lease_end
                               AND m.scheduled_at > moment
                           ORDER BY m.scheduled_at DESC
                           LIMIT 1
                       ), CASE WHEN f.alive THEN least(f.scheduled_at, f.expired_at) END)
                       ELSE coalesce(f.scheduled_at, least((
                           SELECT m.scheduled_at
                           FROM queued.messages m
                           WHERE m.queue_key = key
                               AND m.home = own_home
                               AND m.group_id = g.id
                               AND NOT m.in_flight
                               AND m.scheduled_at > moment
                               AND m.expired_at > moment
                               AND m.delivery_attempts < least(max_attempts, m.max_deliveries)
                           ORDER BY m.scheduled_at
                           LIMIT 1
                       ), CASE WHEN g.first_lease_end > moment THEN nullif(g.first_lease_end, 'infinity') ELSE (
                           SELECT m.scheduled_at
                           FROM queued.messages m
                           WHERE m.queue_key = key
                               AND m.home = own_home
                               AND m.group_id = g.id
                               AND m.in_flight
                               AND m.scheduled_at > moment
                               AND m.expired_at > moment
                               AND m.delivery_attempts < least(max_attempts, m.max_deliveries)
                           ORDER BY m.scheduled_at
                           LIMIT 1
                       ) END))
                   END AS at
            FROM bounded g
            LEFT JOIN LATERAL ( -- the first of them, as above
                SELECT *
                FROM (
                    (
                        SELECT m.ctid AS tid, m.seq, m.scheduled_at, m.expired_at, m.bytes, m.in_flight, m.delivery_attempts < least(max_attempts, m.max_deliveries) AS alive
                        FROM queued.messages m
                        WHERE m.queue_key = key
                            AND m.home = own_home
                            AND m.group_id = g.id
                            AND NOT m.in_flight
                            AND m.seq >= g.first_seq
                            AND m.expired_at > moment
                            AND (in_order OR m.scheduled_at <= moment AND m.delivery_attempts < least(max_attempts, m.max_deliveries))
                        ORDER BY m.seq
                        LIMIT 1
                    )
                    UNION ALL
                    (
                        SELECT m.ctid, m.seq, m.scheduled_at, m.expired_at, m.bytes, m.in_flight, m.delivery_attempts < least(max_attempts, m.max_deliveries)
                        FROM queued.messages m
                        WHERE m.queue_key = key
                            AND m.home = own_home
                            AND m.group_id = g.id
                            AND m.in_flight
                            AND m.scheduled_at >= g.first_lease_end
                            AND m.scheduled_at <= moment
                            AND m.expired_at > moment
                            AND (in_order OR m.delivery_attempts < least(max_attempts, m.max_deliveries))
                        ORDER BY m.scheduled_at
                        LIMIT 1000
                    )
                ) either
                ORDER BY seq
                LIMIT 1
            ) f ON true
        ), idle AS (
            DELETE FROM queued.groups g
            USING checked c
            WHERE g.ctid = c.tid
                AND g.home = own_home
                AND NOT c.holds
                AND NOT c.keep_interval
                AND c.free
        )
        UPDATE queued.groups g
        SET ready_at = CASE WHEN c.holds THEN greatest(coalesce(c.at, later), c.limited_until) ELSE 'infinity' END,
            delivered_at = CASE WHEN c.taken THEN moment ELSE g.delivered_at END,
            limited_until = c.limited_until, first_seq = c.first_seq, first_lease_end = c.first_lease_end, blocked = in_order AND c.holds
        FROM checked c
        WHERE g.ctid = c.tid
            AND g.home = own_home
            AND (c.holds OR c.keep_interval OR NOT c.free)
            AND (c.taken OR (c.at <= moment AND c.free) IS NOT TRUE);

        EXIT WHEN tids IS NOT NULL OR waits;
        visits := greatest(visits, 100);
    END LOOP;
END
$$;

COMMENT ON FUNCTION queued.claim_groups IS 'Internal: a claim of messages with a group';

-- Whether a JSON object contains another one, like @> of jsonb. A value that jsonb cannot
-- hold, such as 1e999999, contains nothing.
CREATE OR REPLACE FUNCTION queued.contains(object json, part jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN queued.comparable(object) @> part;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN false;
END
$$;

COMMENT ON FUNCTION queued.contains IS 'Internal: whether an object contains another one';

-- A search in the messages of a queue, in the order of their due times, after a position. It
-- ends at the first of these bounds: a number of messages found, their bytes, a number of rows
-- read, a time. The last row has no message_id, but the position at which the search ended,
-- and whether there may be more.
CREATE OR REPLACE FUNCTION queued.search_messages(
    key             bigint,      -- queues.key
    from_at         timestamptz, -- null: from the beginning
    from_seq        bigint,
    max_found       integer,
    max_bytes       bigint,      -- exceeded by a single message
    max_rows        integer,
    max_time        interval,
    in_state        text,        -- each of these is null for any
    in_group        text,
    created_from    timestamptz,
    created_until   timestamptz,
    with_attributes json,
    with_data       json,
    with_text       text
) RETURNS TABLE (message_id uuid, last_at timestamptz, last_seq bigint, more boolean)
LANGUAGE plpgsql STABLE -- so that all of its statements see the same rows
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    own_home          CONSTANT smallint := key >> 48; -- queues.home
    began             CONSTANT timestamptz := clock_timestamp();
    chunk             CONSTANT integer := 500;
    wanted_attributes CONSTANT jsonb := queued.comparable(with_attributes);
    wanted_data       CONSTANT jsonb := queued.comparable(with_data);
    wanted_text       CONSTANT text := lower(with_text);
    rows_read         integer := 0;
    rows_of_chunk     integer;
    hits              integer := 0;
    bytes_found       bigint := 0;
    fits              boolean;
    candidate         record;
BEGIN
    last_at := coalesce(from_at, '-infinity');
    last_seq := coalesce(from_seq, 0);
    LOOP
        rows_of_chunk := 0;
        FOR candidate IN
            SELECT o.*, v.state
            FROM (
                SELECT o.*
                FROM (VALUES (true), (false)) AS k (ungrouped)
                CROSS JOIN LATERAL (
                    SELECT m.ctid AS tid, m.id, m.scheduled_at, m.seq, m.bytes, m.created_at, m.group_id
                    FROM queued.messages m
                    WHERE m.queue_key = key
                        AND m.home = own_home
                        AND (m.group_id IS NULL) = k.ungrouped
                        AND (m.scheduled_at, m.seq) > (last_at, last_seq)
                    ORDER BY m.scheduled_at, m.seq
                    LIMIT chunk
                ) o
                ORDER BY o.scheduled_at, o.seq
                LIMIT chunk
            ) o
            LEFT JOIN LATERAL (
                SELECT v.state
                FROM queued.live_messages v
                WHERE v.home = own_home
                    AND v.tid = o.tid
                OFFSET 0
            ) v ON true
            ORDER BY o.scheduled_at, o.seq
        LOOP
            rows_of_chunk := rows_of_chunk + 1;
            rows_read := rows_read + 1;
            fits := (candidate.state IS NOT NULL -- else it is expired
                AND (in_state IS NULL OR candidate.state = in_state)
                AND (in_group IS NULL OR candidate.group_id = in_group)
                AND (created_from IS NULL OR candidate.created_at >= created_from)
                AND (created_until IS NULL OR candidate.created_at < created_until)) IS TRUE;
            IF fits AND (wanted_attributes IS NOT NULL OR wanted_data IS NOT NULL OR wanted_text IS NOT NULL) THEN
                SELECT (wanted_attributes IS NULL OR queued.contains(m.attributes, wanted_attributes))
                    AND (wanted_text IS NULL
                        OR strpos(lower(m.data::text), wanted_text) > 0
                        OR strpos(lower(m.attributes::text), wanted_text) > 0
                        OR strpos(lower(m.last_error), wanted_text) > 0)
                    AND (wanted_data IS NULL OR queued.contains(m.data, wanted_data))
                INTO fits
                FROM queued.messages m
                WHERE m.home = own_home
                    AND m.ctid = candidate.tid;
            END IF;
            IF fits THEN
                IF hits > 0 AND bytes_found + candidate.bytes > max_bytes THEN
                    message_id := NULL;
                    more := true;
                    RETURN NEXT;
                    RETURN;
                END IF;
                hits := hits + 1;
                bytes_found := bytes_found + candidate.bytes;
                message_id := candidate.id;
                RETURN NEXT;
            END IF;
            last_at := candidate.scheduled_at;
            last_seq := candidate.seq;
            IF hits >= max_found OR rows_read >= max_rows OR clock_timestamp() - began >= max_time THEN
                message_id := NULL;
                more := true;
                RETURN NEXT;
                RETURN;
            END IF;
        END LOOP;
        IF rows_of_chunk < chunk THEN
            message_id := NULL;
            more := false;
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
END
$$;

COMMENT ON FUNCTION queued.search_messages IS 'Internal: a search in the messages of a queue';
