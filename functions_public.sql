
-- Functions for applications that use the same database (docs/sql.md). They do in a
-- transaction of the application what the server does for a request: the message exists, or
-- is acked, exactly if the transaction commits. Their names, arguments and results stay. A
-- step of schema.sql that has to change the arguments or the result of one drops it first,
-- which also drops the privileges on it.
--
-- Such a transaction may stay open for long. So these functions, except receive, lock no row
-- that statements of the server wait for, but the messages themselves and deduplication ids.
-- Groups are locked at the commit only (settle_groups).
--
-- Callers need no privilege on the tables, because the functions for applications run with
-- those of their owner. The planner settings are the ones of the server (connectionSettings
-- and engineSettings in pgconn.go). Literals with a backslash are E'…', because callers may
-- turn standard_conforming_strings off.

-- A new UUID of version 7, like newID (uuid.go).
CREATE OR REPLACE FUNCTION queued.new_id() RETURNS uuid
LANGUAGE sql VOLATILE
AS $$
    SELECT encode(set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$;

COMMENT ON FUNCTION queued.new_id IS 'Internal: a new id of a message';

-- Whether there are several homes, so that the last six bits of the id of a message are the
-- home in which it was published (uuid.go). The server replaces this function where that is
-- so (citus.go).
CREATE OR REPLACE FUNCTION queued.has_homes() RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$ SELECT false $$;

COMMENT ON FUNCTION queued.has_homes IS 'Internal: whether there are several homes';

-- The transactions of several homes that have committed in some of them, or in none. The server
-- replaces this function where there are several homes (citus.go).
CREATE OR REPLACE FUNCTION queued.unfinished() RETURNS text[]
LANGUAGE sql VOLATILE
AS $$ SELECT '{}'::text[] $$;

COMMENT ON FUNCTION queued.unfinished IS 'Internal: transactions of several homes that have not committed in all of them';

-- Makes Citus commit the transaction in two phases, because it changes a table of the coordinator.
-- A transaction that changes one node only is committed there, and then on the coordinator. If
-- that failed, a message would be published or acked, and the application's changes undone.
CREATE OR REPLACE FUNCTION queued.commit_together() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF queued.has_homes() THEN
        UPDATE queued.move_tasks
        SET id = id
        WHERE id IS NULL;
    END IF;
END
$$;

COMMENT ON FUNCTION queued.commit_together IS 'Internal: makes the nodes of a cluster commit together';

CREATE OR REPLACE FUNCTION queued.id_in(home smallint, id uuid) RETURNS uuid
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE WHEN queued.has_homes()
        THEN encode(set_byte(uuid_send(id), 15, get_byte(uuid_send(id), 15) & 192 | home), 'hex')::uuid
        ELSE id
    END
$$;

COMMENT ON FUNCTION queued.id_in IS 'Internal: an id of a message in a home';

CREATE OR REPLACE FUNCTION queued.home_in(id uuid) RETURNS smallint
LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE WHEN queued.has_homes() THEN get_byte(uuid_send(id), 15) & 63 ELSE 0 END::smallint $$;

COMMENT ON FUNCTION queued.home_in IS 'Internal: the home in an id';

-- An object as jsonb, for comparisons. Two strings in it are equal exactly if they are equal
-- in the server (rawjson.Unquote). jsonb cannot contain \u0000 and lone surrogates, so these
-- stay escapes, and a backslash becomes two. Of equal names the last one counts.
CREATE OR REPLACE FUNCTION queued.comparable(object json) RETURNS jsonb
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE WHEN position(E'\\' IN object::text) = 0 THEN object::jsonb ELSE (
        SELECT string_agg(CASE
                   WHEN part.text ~* E'^\\\\u(0000|d[89a-f]..)$' THEN E'\\u005c' || lower(substr(part.text, 2))
                   WHEN part.text = E'\\\\' OR lower(part.text) = E'\\u005c' THEN E'\\u005c\\u005c'
                   ELSE part.text
               END, '' ORDER BY part.n)
        FROM (
            SELECT m[1] AS text, n
            FROM regexp_matches(object::text, E'[^\\\\]+|\\\\u[dD][89abAB]..\\\\u[dD][c-fC-F]..|\\\\u....|\\\\.', 'g') WITH ORDINALITY AS p (m, n)
        ) part
    )::jsonb END
$$;

COMMENT ON FUNCTION queued.comparable IS 'Internal: an object for comparisons';

-- Whether the filters of a queue accept a message with these attributes, like matcher.match
-- (filter.go).
CREATE OR REPLACE FUNCTION queued.matches(filters json, attributes json) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN filters IS NULL OR json_typeof(filters) = 'null' THEN true
        WHEN attributes IS NULL OR json_typeof(attributes) = 'null' THEN false
        ELSE NOT EXISTS (
            SELECT
            FROM jsonb_each(queued.comparable(filters)) f
            CROSS JOIN (SELECT queued.comparable(attributes) AS attributes OFFSET 0) m
            WHERE (f.value ? (m.attributes ->> f.key)) IS NOT TRUE
        )
    END
$$;

COMMENT ON FUNCTION queued.matches IS 'Internal: whether filters accept attributes';

-- The number of levels of nesting of a JSON value.
CREATE OR REPLACE FUNCTION queued.nesting(value text) RETURNS bigint
LANGUAGE sql IMMUTABLE
AS $$
    SELECT coalesce(max(depth), 0)
    FROM (
        SELECT sum(CASE WHEN bracket IN ('{', '[') THEN 1 ELSE -1 END) OVER (ORDER BY n) AS depth
        FROM string_to_table(
            regexp_replace(regexp_replace(value, E'"(?:[^"\\\\]|\\\\.)*"', '', 'g'), E'[^][{}]+', '', 'g'), NULL
        ) WITH ORDINALITY AS b (bracket, n)
    ) levels
$$;

COMMENT ON FUNCTION queued.nesting IS 'Internal: depth of a JSON value';

-- JSON as the server stores it: without white space around it. The null of JSON becomes null.
CREATE OR REPLACE FUNCTION queued.trimmed(value json) RETURNS json
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN json_typeof(value) = 'null' THEN NULL
        WHEN value::text ~ E'^[ \\t\\n\\r]|[ \\t\\n\\r]$' THEN btrim(value::text, E' \t\n\r')::json
        ELSE value
    END
$$;

COMMENT ON FUNCTION queued.trimmed IS 'Internal: JSON without white space around it';

-- A duration in seconds. It raises an error unless it is finite and between two numbers.
CREATE OR REPLACE FUNCTION queued.seconds(argument text, duration interval, least_seconds double precision, most_seconds double precision) RETURNS double precision
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF NOT isfinite(duration) OR extract(epoch FROM duration) NOT BETWEEN least_seconds AND most_seconds THEN
        RAISE EXCEPTION '% must be at least % and at most % seconds', argument, least_seconds, most_seconds
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN extract(epoch FROM duration);
END
$$;

COMMENT ON FUNCTION queued.seconds IS 'Internal: a duration in seconds, within bounds';

-- Raises an error unless the arguments of publish and send are those of a message that the
-- server would accept (form.draft in draft.go). data and attributes are trimmed.
CREATE OR REPLACE FUNCTION queued.check_message(data json, attributes json, group_id text, deduplication_id text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    max_bytes CONSTANT bigint := (SELECT s.max_message_bytes FROM queued.settings s);
BEGIN
    IF data IS NULL THEN
        RAISE EXCEPTION 'data must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF json_typeof(data) <> 'object' THEN
        RAISE EXCEPTION 'data must be a JSON object' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF octet_length(data::text) + coalesce(octet_length(attributes::text), 0) > max_bytes THEN
        RAISE EXCEPTION 'data and attributes must have at most % bytes', max_bytes USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A level of nesting takes a bracket, so most messages need no closer look.
    IF octet_length(data::text) >= 1000 AND queued.nesting(data::text) >= 1000 THEN
        RAISE EXCEPTION 'data must not be nested deeper than 999 levels' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF attributes::text !~ E'^\\{[ \\t\\n\\r]*(?:"(?:[^"\\\\]|\\\\.)*"[ \\t\\n\\r]*:[ \\t\\n\\r]*"(?:[^"\\\\]|\\\\.)*"[ \\t\\n\\r]*,?[ \\t\\n\\r]*)*\\}$' THEN
        RAISE EXCEPTION 'attributes must be a JSON object of strings' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF octet_length(group_id) NOT BETWEEN 1 AND 256 THEN
        RAISE EXCEPTION 'group_id must have 1 to 256 bytes' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF group_id ~ E'(?:^|/)\\.?\\.?(?:/|$)' THEN
        RAISE EXCEPTION 'group_id must not have a part between slashes that is empty, "." or ".."' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF deduplication_id !~ '^[!-~]{1,128}$' THEN
        RAISE EXCEPTION 'deduplication_id must have 1 to 128 printable ASCII characters without spaces' USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

COMMENT ON FUNCTION queued.check_message IS 'Internal: checks the arguments of publish and send';

-- Wakes the receivers of a queue at all servers after the commit (notify.go), for messages
-- that are due after the start of the transaction. PostgreSQL sends equal notifications of a
-- transaction once.
CREATE OR REPLACE FUNCTION queued.wake(queue_id text) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    SELECT pg_notify('queued', 'sql ' || queue_id || ' ' || (extract(epoch FROM now()) * 1000000)::bigint)
$$;

COMMENT ON FUNCTION queued.wake IS 'Internal: wakes the receivers of a queue at the commit';

-- Records that the transaction has changed a message with a group, for settle_groups.
CREATE OR REPLACE FUNCTION queued.change_group(message_id uuid, queue_key bigint, group_id text, is_new boolean) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    INSERT INTO queued.group_changes AS c (xid, message_id, queue_key, group_id, is_new)
    VALUES (pg_current_xact_id(), change_group.message_id, change_group.queue_key, change_group.group_id, change_group.is_new)
    ON CONFLICT (xid, message_id, queue_key) DO UPDATE
    SET is_new = c.is_new OR excluded.is_new
$$;

COMMENT ON FUNCTION queued.change_group IS 'Internal: records a change of a group until the commit';

-- The trigger of group_changes, which runs at the commit: it locks the groups, numbers their
-- new messages in the order of the commits, and makes claims check the groups, like
-- wakeGroupsSQL (groups.go). The first call does this for the whole transaction.
CREATE OR REPLACE FUNCTION queued.settle_groups() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    ids     uuid[];
    keys    bigint[];
    groups  text[];
    news    boolean[];
    moment  timestamptz;
    place   smallint;
    renewed record;
    number  bigint;
BEGIN
    WITH changes AS (
        DELETE FROM queued.group_changes
        WHERE xid = pg_current_xact_id()
        RETURNING message_id, queue_key, group_id, is_new
    )
    SELECT array_agg(message_id), array_agg(queue_key), array_agg(group_id), array_agg(is_new)
    INTO ids, keys, groups, news
    FROM changes;
    IF ids IS NULL THEN
        RETURN NULL;
    END IF;

    FOR place IN
        SELECT DISTINCT (key >> 48)::smallint AS home
        FROM unnest(keys) AS key
        ORDER BY home
    LOOP
        -- The condition is false, so that groups that exist are only locked.
        INSERT INTO queued.groups AS g (home, queue_key, id, ready_at, first_seq, first_lease_end)
        SELECT DISTINCT place, u.queue_key, u.id COLLATE "C", 'infinity'::timestamptz, 9223372036854775807, 'infinity'::timestamptz
        FROM unnest(keys, groups) AS u (queue_key, id)
        WHERE u.queue_key >> 48 = place
        ORDER BY u.queue_key, u.id COLLATE "C"
        ON CONFLICT (queue_key, id) DO UPDATE
        SET blocked = g.blocked
        WHERE false;

        FOR renewed IN
            SELECT m.id, m.queue_key
            FROM unnest(ids, keys, news) AS u (id, queue_key, is_new)
            CROSS JOIN LATERAL (
                SELECT c.id, c.queue_key, c.seq
                FROM queued.messages c
                WHERE c.home = place
                    AND c.id = ANY (ARRAY[u.id])
                    AND c.queue_key IS NOT DISTINCT FROM u.queue_key
                OFFSET 0
            ) m
            WHERE u.is_new
            ORDER BY m.seq
        LOOP
            number := nextval('queued.messages_seq_seq');
            UPDATE queued.messages m
            SET seq = number
            WHERE m.home = place
                AND m.id = renewed.id
                AND m.queue_key = renewed.queue_key;
        END LOOP;

        -- A message that the transaction has acked or moved away is not found: then another
        -- one of its group may be next.
        moment := clock_timestamp();
        UPDATE queued.groups g
        SET ready_at = least(g.ready_at, greatest(w.due_at, g.limited_until)), blocked = false, first_seq = least(g.first_seq, w.seq)
        FROM (
            SELECT u.queue_key, u.group_id, min(greatest(m.scheduled_at, moment)) AS due_at, min(m.seq) AS seq
            FROM unnest(ids, keys, groups) AS u (id, queue_key, group_id)
            LEFT JOIN LATERAL (
                SELECT c.scheduled_at, c.seq
                FROM queued.messages c
                WHERE c.home = place
                    AND c.id = ANY (ARRAY[u.id])
                    AND c.queue_key IS NOT DISTINCT FROM u.queue_key
                OFFSET 0
            ) m ON true
            WHERE u.queue_key >> 48 = place
            GROUP BY u.queue_key, u.group_id
        ) w
        WHERE g.home = place
            AND g.queue_key = w.queue_key
            AND g.id = w.group_id
            AND (g.blocked
                OR g.first_seq > w.seq
                OR g.ready_at > greatest(w.due_at, g.limited_until));
    END LOOP;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION queued.settle_groups IS 'Internal: the trigger of group_changes';

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'queued.group_changes'::regclass AND tgname = 'settle_groups') THEN
        CREATE CONSTRAINT TRIGGER settle_groups AFTER INSERT ON queued.group_changes
            DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION queued.settle_groups();
        ALTER TABLE queued.group_changes ENABLE ALWAYS TRIGGER settle_groups;
    END IF;
END
$$;

-- Stores a copy of a message in a queue, and returns its id: that of the first message if it
-- is a duplicate.
CREATE OR REPLACE FUNCTION queued.store_copy(queue queued.queues, data json, attributes json, group_id text, delay interval, deduplication_id text, moment timestamptz) RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    new_id         CONSTANT uuid := queued.id_in(queue.home, queued.new_id());
    wait           double precision := coalesce(queue.delivery_delay_seconds, 0);
    window_seconds double precision;
    found_id       uuid;
BEGIN
    IF delay IS NOT NULL THEN
        wait := queued.seconds('delay', delay, 0, 2147483647);
    END IF;
    IF wait >= queue.message_retention_seconds THEN
        RAISE EXCEPTION 'delay must be shorter than the retention of queue "%": the message would expire before it is due', queue.id
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    IF deduplication_id IS NOT NULL THEN
        window_seconds := coalesce(queue.deduplication_window_seconds, (SELECT s.deduplication_window_seconds FROM queued.settings s));
        INSERT INTO queued.deduplications AS d (home, queue_key, id, message_id, created_at, expires_at)
        VALUES (queue.home, queue.key, deduplication_id, new_id, moment, moment + make_interval(secs => window_seconds))
        ON CONFLICT (queue_key, id) DO UPDATE
        SET message_id = excluded.message_id, created_at = excluded.created_at, expires_at = excluded.expires_at
        WHERE d.expires_at <= moment;
        IF NOT FOUND THEN
            SELECT d.message_id
            INTO found_id
            FROM queued.deduplications d
            WHERE d.home = queue.home
                AND d.queue_key = queue.key
                AND d.id = deduplication_id;
            RETURN found_id;
        END IF;
    END IF;

    IF queue.full_until > moment THEN -- like checkCapacity (capacity.go)
        RAISE EXCEPTION 'queue "%" is full: it has % messages or more (max_messages)', queue.id, queue.max_messages
            USING ERRCODE = 'configuration_limit_exceeded';
    END IF;

    INSERT INTO queued.messages (home, id, queue_key, group_id, data, attributes, bytes, expired_at, scheduled_at, created_at, updated_at)
    VALUES (queue.home, new_id, queue.key, store_copy.group_id, store_copy.data, store_copy.attributes,
            octet_length(store_copy.data::text) + coalesce(octet_length(store_copy.attributes::text), 0),
            moment + make_interval(secs => queue.message_retention_seconds), moment + make_interval(secs => wait), moment, moment);
    IF group_id IS NOT NULL THEN
        PERFORM queued.change_group(new_id, queue.key, group_id, true);
    END IF;
    PERFORM queued.commit_together();
    PERFORM queued.wake(queue.id);
    RETURN new_id;
END
$$;

COMMENT ON FUNCTION queued.store_copy IS 'Internal: stores a copy of a message';

CREATE OR REPLACE FUNCTION queued.publish(topic text, data json, attributes json DEFAULT NULL, group_id text DEFAULT NULL, delay interval DEFAULT NULL, deduplication_id text DEFAULT NULL)
RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    moment CONSTANT timestamptz := clock_timestamp();
    queue  queued.queues;
BEGIN
    data := queued.trimmed(data);
    attributes := queued.trimmed(attributes);
    PERFORM queued.check_message(data, attributes, group_id, deduplication_id);
    PERFORM queued.seconds('delay', delay, 0, 2147483647);
    IF topic IS NULL THEN
        RAISE EXCEPTION 'topic must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF NOT EXISTS (SELECT FROM queued.topics t WHERE t.id = topic) THEN
        RAISE EXCEPTION 'topic "%" does not exist', topic USING ERRCODE = 'no_data_found';
    END IF;
    FOR queue IN
        SELECT *
        FROM queued.queues q
        WHERE q.topic_id = topic
            AND queued.matches(q.message_filters, attributes)
        ORDER BY q.key -- the order of the rows of deduplications
    LOOP
        RETURN NEXT queued.store_copy(queue, data, attributes, group_id, delay, deduplication_id, moment);
    END LOOP;
END
$$;

COMMENT ON FUNCTION queued.publish IS 'Publishes a message to a topic when the transaction commits, and returns an id for each queue that gets a copy';

CREATE OR REPLACE FUNCTION queued.send(queue text, data json, attributes json DEFAULT NULL, group_id text DEFAULT NULL, delay interval DEFAULT NULL, deduplication_id text DEFAULT NULL)
RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    destination CONSTANT queued.queues := queued.queue_named(queue);
BEGIN
    data := queued.trimmed(data);
    attributes := queued.trimmed(attributes);
    PERFORM queued.check_message(data, attributes, group_id, deduplication_id);
    RETURN queued.store_copy(destination, data, attributes, group_id, delay, deduplication_id, clock_timestamp());
END
$$;

COMMENT ON FUNCTION queued.send IS 'Puts a message into a queue when the transaction commits, and returns its id';

-- A queue by its id.
CREATE OR REPLACE FUNCTION queued.queue_named(queue text) RETURNS queued.queues
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    named queued.queues;
BEGIN
    IF queue IS NULL THEN
        RAISE EXCEPTION 'queue must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    SELECT *
    INTO named
    FROM queued.queues q
    WHERE q.id = queue;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'queue "%" does not exist', queue USING ERRCODE = 'no_data_found';
    END IF;
    RETURN named;
END
$$;

COMMENT ON FUNCTION queued.queue_named IS 'Internal: the queue that an argument names';

-- Raises an error unless the id of a message and its lease token are valid.
CREATE OR REPLACE FUNCTION queued.check_lease(id uuid, scheduled_at timestamptz) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF id IS NULL THEN
        RAISE EXCEPTION 'id must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF NOT isfinite(scheduled_at) THEN
        RAISE EXCEPTION 'scheduled_at must be finite' USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

COMMENT ON FUNCTION queued.check_lease IS 'Internal: checks the arguments of ack and nack';

-- The home that a message has now; null if there is none. A message that is moving to another
-- home is in neither until the transaction has finished, so it is searched like in moved.go.
CREATE OR REPLACE FUNCTION queued.home_now(id uuid) RETURNS smallint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    several  CONSTANT boolean := queued.has_homes();
    searches integer := 0;
    earlier  text[] := '{}';
    pending  text[];
    place    smallint;
BEGIN
    FOR attempt IN 1..20 LOOP
        SELECT m.home
        INTO place
        FROM queued.messages m
        WHERE m.id = home_now.id;
        searches := searches + 1;
        IF FOUND OR NOT several OR searches = 3 THEN
            RETURN place;
        END IF;
        pending := queued.unfinished();
        IF earlier && pending THEN
            searches := 0;
            PERFORM pg_sleep(0.01);
        END IF;
        earlier := pending;
    END LOOP;
    RAISE lock_not_available USING MESSAGE = format('message %s may be moving to another queue; try again later', id);
END
$$;

COMMENT ON FUNCTION queued.home_now IS 'Internal: the home that a message has now';

CREATE OR REPLACE FUNCTION queued.ack(id uuid, scheduled_at timestamptz DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    place    smallint := queued.home_in(id);
    found_in smallint;
    acked    record;
    queue_id text;
BEGIN
    PERFORM queued.check_lease(id, scheduled_at);
    -- A statement that began before the commit of a move does not see the moved message in
    -- either queue. The next statement sees it.
    FOR attempt IN 1..5 LOOP
        IF attempt > 1 THEN
            found_in := queued.home_now(ack.id);
            IF found_in IS NULL OR ack.scheduled_at IS NOT NULL AND found_in = place THEN
                RETURN false;
            END IF;
            place := found_in;
        END IF;
        DELETE FROM queued.messages m
        WHERE m.home = place
            AND m.id = ack.id
            AND (ack.scheduled_at IS NULL OR m.in_flight AND coalesce(m.lease_end, m.scheduled_at) = ack.scheduled_at)
        RETURNING m.queue_key, m.group_id
        INTO acked;
        EXIT WHEN FOUND;
    END LOOP;
    IF acked.queue_key IS NULL THEN
        RAISE lock_not_available USING MESSAGE = format('message %s is moving to another queue; try again later', id);
    END IF;
    PERFORM queued.commit_together();
    IF acked.group_id IS NOT NULL THEN
        SELECT q.id
        INTO queue_id
        FROM queued.queues q
        WHERE q.key = acked.queue_key
            AND q.ordered;
        IF FOUND THEN
            PERFORM queued.change_group(ack.id, acked.queue_key, acked.group_id, false);
            PERFORM queued.wake(queue_id);
        END IF;
    END IF;
    RETURN true;
END
$$;

COMMENT ON FUNCTION queued.ack IS 'Deletes a message when the transaction commits. Returns whether it was there and, if scheduled_at is given, still in that lease';

-- The beginning of a text, at most that many bytes, up to the end of a character.
CREATE OR REPLACE FUNCTION queued.cut(value text, most integer) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    bytes CONSTANT bytea := convert_to(value, 'UTF8');
BEGIN
    IF length(bytes) <= most THEN
        RETURN value;
    END IF;
    WHILE get_byte(bytes, most) BETWEEN 128 AND 191 LOOP -- not the first byte of a character
        most := most - 1;
    END LOOP;
    RETURN convert_from(substring(bytes FOR most), 'UTF8');
END
$$;

COMMENT ON FUNCTION queued.cut IS 'Internal: the beginning of a text';

CREATE OR REPLACE FUNCTION queued.nack(id uuid, delay interval DEFAULT NULL, scheduled_at timestamptz DEFAULT NULL, error text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    wait   CONSTANT double precision := coalesce(queued.seconds('delay', delay, 0, 43200), 0);
    reason CONSTANT text := queued.cut(nullif(error, ''), 2048);
    moment CONSTANT timestamptz := clock_timestamp();
    place  smallint := queued.home_in(id);
    nacked queued.messages;
    source queued.queues;
    dead   queued.queues;
BEGIN
    PERFORM queued.check_lease(id, scheduled_at);
    FOR attempt IN 1..2 LOOP -- the message may have moved
        IF attempt = 2 THEN
            place := coalesce(queued.home_now(nack.id), place);
        END IF;
        SELECT *
        INTO nacked
        FROM queued.messages m
        WHERE m.home = place
            AND m.id = nack.id
        FOR UPDATE;
        EXIT WHEN FOUND;
    END LOOP;
    SELECT *
    INTO source
    FROM queued.queues q
    WHERE q.key = nacked.queue_key;
    IF NOT FOUND
        OR NOT nacked.in_flight AND nacked.scheduled_at <= moment -- it keeps its place
        OR scheduled_at IS NOT NULL AND (NOT nacked.in_flight OR coalesce(nacked.lease_end, nacked.scheduled_at) <> scheduled_at)
    THEN
        RETURN false;
    END IF;

    IF nacked.delivery_attempts < least(source.delivery_limit, nacked.max_deliveries) THEN
        UPDATE queued.messages m
        SET in_flight = false, last_delivery = false, lease_end = NULL, updated_at = moment,
            scheduled_at = moment + make_interval(secs => CASE
                WHEN delay IS NULL AND nacked.in_flight THEN coalesce(source.retry_backoff_seconds[least(nacked.delivery_attempts, cardinality(source.retry_backoff_seconds))], 0)
                ELSE wait
            END),
            last_error = coalesce(reason, m.last_error), last_error_at = CASE WHEN reason IS NULL THEN m.last_error_at ELSE moment END
        WHERE m.home = source.home
            AND m.id = nack.id
            AND m.queue_key = source.key;
    ELSE
        DELETE FROM queued.messages m
        WHERE m.home = source.home
            AND m.id = nack.id
            AND m.queue_key = source.key;
        SELECT *
        INTO dead
        FROM queued.queues q
        WHERE q.id = source.dead_queue_id;
        IF FOUND THEN -- like storeTakenSQL (bulk.go)
            INSERT INTO queued.messages (home, queue_key, expired_at, scheduled_at, updated_at, last_error, last_error_at, source_queue_id, source_delivery_attempts, dead_at,
                                         id, created_at, bytes, group_id, job_id, trace, attributes, data, sqs)
            VALUES (dead.home, dead.key, moment + make_interval(secs => dead.message_retention_seconds), moment + make_interval(secs => coalesce(dead.delivery_delay_seconds, 0)), moment,
                    coalesce(reason, nacked.last_error), CASE WHEN reason IS NULL THEN nacked.last_error_at ELSE moment END, source.id, nacked.delivery_attempts, moment,
                    nacked.id, nacked.created_at, nacked.bytes, nacked.group_id, nacked.job_id, nacked.trace, nacked.attributes, nacked.data, nacked.sqs);
            IF nacked.group_id IS NOT NULL THEN
                PERFORM queued.change_group(nack.id, dead.key, nacked.group_id, true);
            END IF;
            PERFORM queued.wake(dead.id);
        END IF;
    END IF;
    IF nacked.group_id IS NOT NULL THEN
        PERFORM queued.change_group(nack.id, source.key, nacked.group_id, false);
    END IF;
    PERFORM queued.commit_together();
    PERFORM queued.wake(source.id);
    RETURN true;
END
$$;

COMMENT ON FUNCTION queued.nack IS 'Makes a message due again when the transaction commits, or moves it to the dead queue after its last delivery. Returns whether it was in flight or delayed and, if scheduled_at is given, still in that lease';

CREATE OR REPLACE FUNCTION queued.receive(queue text, max_messages integer DEFAULT 1, ack_deadline interval DEFAULT NULL)
RETURNS SETOF queued.delivery
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    source CONSTANT queued.queues := queued.queue_named(queue);
    lease  CONSTANT integer := ceil(coalesce(queued.seconds('ack_deadline', ack_deadline, 1, 43200), source.ack_deadline_seconds));
    groups_next     boolean := random() < 0.5; -- neither kind of message has to wait for the other
    left_messages   integer := max_messages;
    left_bytes      bigint := 8388608; -- deliverySize (receive.go)
    moment timestamptz;
    taken  record;
BEGIN
    IF max_messages IS NULL THEN
        RAISE EXCEPTION 'max_messages must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF max_messages NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'max_messages must be at least 1 and at most 1000' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF source.paused THEN
        RETURN;
    END IF;
    FOR part IN 1..2 LOOP
        EXIT WHEN left_messages = 0 OR left_bytes <= 0;
        IF groups_next THEN
            FOR taken IN
                SELECT (c.message).*
                FROM queued.claim_groups(source.key, (SELECT s.version FROM queued.settings s), '-infinity', left_messages, false, coalesce(source.delivery_interval_ms, 0),
                    source.ordered, source.delivery_limit, left_messages, left_bytes, lease, source.retry_backoff_seconds) c
                ORDER BY c.nth
            LOOP
                RETURN NEXT (taken.id, source.id, taken.data, taken.attributes, taken.group_id, taken.delivery_attempts,
                    coalesce(taken.lease_end, taken.scheduled_at), taken.expired_at, taken.created_at, taken.updated_at)::queued.delivery;
                left_messages := left_messages - 1;
                left_bytes := left_bytes - taken.bytes;
            END LOOP;
        ELSE
            moment := clock_timestamp();
            FOR taken IN
                WITH due AS MATERIALIZED ( -- like dueMessagesSQL and claimMessagesSQL (claim.go)
                    SELECT ctid AS tid, scheduled_at, seq, bytes
                    FROM queued.messages
                    WHERE home = source.home
                        AND queue_key = source.key
                        AND group_id IS NULL
                        AND scheduled_at <= moment
                        AND expired_at > moment
                        AND delivery_attempts < source.delivery_limit
                    ORDER BY scheduled_at, seq
                    LIMIT left_messages
                    FOR UPDATE SKIP LOCKED
                ), fitting AS MATERIALIZED (
                    SELECT tid, scheduled_at, seq, bytes, sum(bytes) OVER (ORDER BY scheduled_at, seq) AS total
                    FROM due
                ), leased AS (
                    UPDATE queued.messages m
                    SET in_flight = true, delivery_attempts = m.delivery_attempts + 1, last_delivery = m.delivery_attempts + 1 >= source.delivery_limit,
                        scheduled_at = (moment AT TIME ZONE 'UTC' + make_interval(secs => lease + CASE -- like claimBackoffSQL
                            WHEN m.delivery_attempts + 1 >= source.delivery_limit THEN 0
                            ELSE coalesce(source.retry_backoff_seconds[least(m.delivery_attempts + 1, cardinality(source.retry_backoff_seconds))], 0)
                        END)) AT TIME ZONE 'UTC',
                        lease_end = moment + make_interval(secs => CASE WHEN source.retry_backoff_seconds IS NOT NULL THEN lease END), updated_at = moment
                    FROM fitting f
                    WHERE m.home = source.home
                        AND m.ctid = f.tid
                        AND (f.total <= left_bytes OR f.total = f.bytes)
                    RETURNING m.*, f.total
                )
                SELECT *
                FROM leased
                ORDER BY total
            LOOP
                RETURN NEXT (taken.id, source.id, taken.data, taken.attributes, taken.group_id, taken.delivery_attempts,
                    coalesce(taken.lease_end, taken.scheduled_at), taken.expired_at, taken.created_at, taken.updated_at)::queued.delivery;
                left_messages := left_messages - 1;
                left_bytes := left_bytes - taken.bytes;
            END LOOP;
        END IF;
        groups_next := NOT groups_next;
    END LOOP;
END
$$;

COMMENT ON FUNCTION queued.receive IS 'Leases up to max_messages due messages of a queue for the ack deadline, without waiting for messages. The leases hold when the transaction commits';

-- Applications get EXECUTE on single functions, and servers on all of them (queued schema).
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA queued FROM PUBLIC;
