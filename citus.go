package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/lib/pq"
)

// Citus (https://github.com/citusdata/citus) is an extension that distributes tables over
// several PostgreSQL servers. Where a database has it, the server distributes the tables at
// its start.

const selectCitusSQL = `
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')`

// Every home has a shard of its own, so some numbers are no homes: PostgreSQL's hash puts
// them into the shard of a smaller one.
const (
	maxHomes   = 64 // because an id has six bits for the home
	citusSpace = 32 // shards of each table
)

// distributedTables are distributed by home, and referenceTables are on all nodes. The others
// are on the coordinator, as are the statements with them.
var (
	referenceTables   = []string{"topics", "queues", "settings", "deleted_queues", "schema_version"}
	distributedTables = []string{"messages", "groups", "ready_groups", "consumed_messages", "deduplications", "job_counts"}
)

// citusSettings let one transaction change tables and functions. They allow what Citus cannot
// check itself: that a home determines the shard of whatever a trigger changes, and that keys
// are unique without the home, which follows from the key of the queue.
const citusSettings = `SET LOCAL citus.enable_unsafe_triggers = on;
SET LOCAL citus.allow_unsafe_constraints = on;
SET LOCAL citus.multi_shard_modify_mode = 'sequential'`

var nodeSettings = fmt.Sprintf("SET lock_timeout = %d;", lockTimeout.Milliseconds()) + plannerSettings + engineSettings

// Citus also lists tables that it has not distributed, because a foreign key of another table
// refers to them.
const selectDistributedSQL = `
SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $1::regclass AND (partmethod = 'h' OR repmodel = 't'))`

// dropTypedFunctionsSQL drops the functions with the type of a table, which would become that
// of a shard. They are created again afterwards.
const dropTypedFunctionsSQL = `
DROP FUNCTION IF EXISTS queued.store_copy;
DROP FUNCTION IF EXISTS queued.queue_named;
DROP FUNCTION IF EXISTS queued.claim_groups`

// setLoggedSQL makes unloggedTable a logged one. Shards of unlogged tables cannot move to
// another node while they are used.
const (
	unloggedTable = "job_counts"
	setLoggedSQL  = `ALTER TABLE queued.job_counts SET LOGGED`
)

// adaptFunctionsSQL makes the SQL functions those of a database with several homes. Citus
// cannot use generic plans there. The trigger of a shard of groups names the shard of
// ready_groups, which PostgreSQL plans faster than Citus the distributed table.
const adaptFunctionsSQL = `
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN
        SELECT oid
        FROM pg_proc
        WHERE pronamespace = 'queued'::regnamespace
            AND 'plan_cache_mode=force_generic_plan' = ANY (proconfig)
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET plan_cache_mode = force_custom_plan', f);
    END LOOP;
    IF NOT queued.has_homes() THEN
        CREATE OR REPLACE FUNCTION queued.has_homes() RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
    END IF;
END
$$`

// replacedFunctions are functions with other bodies where there are several homes. One is
// replaced only if its body differs: a change needs all nodes, and a server must start also
// while one of them does not respond.
var replacedFunctions = []struct{ name, returns, body string }{
	{"queued.unfinished", "text[]", `
DECLARE
    all_known boolean;
    all_ids   text[];
BEGIN
    SELECT bool_and(r.success), coalesce(array_agg(u.id) FILTER (WHERE u.id <> ''), '{}')
    INTO all_known, all_ids
    FROM run_command_on_all_nodes('SELECT string_agg(gid, '','') FROM pg_prepared_xacts WHERE database = current_database()') AS r
    CROSS JOIN LATERAL unnest(coalesce(string_to_array(r.result, ','), '{NULL}')) AS u (id);
    IF NOT all_known THEN
        RAISE connection_failure USING MESSAGE = 'a node does not respond';
    END IF;
    RETURN all_ids;
END
`},
	{"queued.change_ready_groups", "trigger", `
DECLARE
    ready_groups CONSTANT text := 'queued.ready_groups_'
        || get_shard_id_for_distribution_column('queued.ready_groups', CASE TG_OP WHEN 'DELETE' THEN OLD.home ELSE NEW.home END);
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.ready_at < 'infinity' AND NEW.ready_at < 'infinity' THEN
        EXECUTE 'UPDATE ' || ready_groups || ' SET ready_at = $1 WHERE home = $2 AND queue_key = $3 AND ready_at = $4 AND id = $5'
        USING NEW.ready_at, OLD.home, OLD.queue_key, OLD.ready_at, OLD.id;
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' AND OLD.ready_at < 'infinity' THEN
        EXECUTE 'DELETE FROM ' || ready_groups || ' WHERE home = $1 AND queue_key = $2 AND ready_at = $3 AND id = $4'
        USING OLD.home, OLD.queue_key, OLD.ready_at, OLD.id;
    END IF;
    IF TG_OP <> 'DELETE' AND NEW.ready_at < 'infinity' THEN
        EXECUTE 'INSERT INTO ' || ready_groups || ' (home, queue_key, ready_at, id) VALUES ($1, $2, $3, $4)'
        USING NEW.home, NEW.queue_key, NEW.ready_at, NEW.id;
    END IF;
    RETURN NULL;
END
`},
}

const selectBodySQL = `
SELECT prosrc
FROM pg_proc
WHERE oid = $1::regproc`

// adaptFunctions changes the SQL functions of a distributed database.
func adaptFunctions(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, adaptFunctionsSQL); err != nil {
		return fmt.Errorf("functions: %w", err)
	}
	for _, f := range replacedFunctions {
		var body string
		err := tx.QueryRowContext(ctx, selectBodySQL, f.name).Scan(&body)
		if err == nil && body != f.body {
			_, err = tx.ExecContext(ctx, fmt.Sprintf("CREATE OR REPLACE FUNCTION %s() RETURNS %s LANGUAGE plpgsql AS $body$%s$body$", f.name, f.returns, f.body))
		}
		if err != nil {
			return fmt.Errorf("function %s: %w", f.name, err)
		}
	}
	return nil
}

// numbersLock is the key of the advisory lock under which a node advances its sequence.
const numbersLock = 0x71756575_65640004

// ticksSQL is the clock in ticks of 10 µs.
const ticksSQL = `(extract(epoch FROM clock_timestamp() - '2020-01-01Z'::timestamptz) * 100000)::bigint`

// The numbers of the messages of a home are those of the node that has it, whichever node an
// INSERT comes from. The sequence of a node has a range of its own, so the numbers lack the
// bits of the range. A node follows its clock, so that a home that moves to another node goes
// on with higher numbers. A message that is restored keeps its number, which the INSERT has
// with a minus sign.
var numberMessageSQL = strings.ReplaceAll(`
CREATE OR REPLACE FUNCTION queued.number_message() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    ticks CONSTANT bigint := `+ticksSQL+`;
    seq   bigint;
BEGIN
    IF NEW.seq < 0 THEN
        NEW.seq := -NEW.seq;
        RETURN NEW;
    END IF;
    seq := nextval('queued.messages_seq_seq');
    IF seq & 281474976710655 < ticks - 1000 THEN
        BEGIN
            PERFORM pg_advisory_lock($1);
            IF pg_sequence_last_value('queued.messages_seq_seq') & 281474976710655 < ticks THEN
                PERFORM setval('queued.messages_seq_seq', (seq >> 48 << 48) + ticks);
            END IF;
            PERFORM pg_advisory_unlock($1);
        EXCEPTION WHEN query_canceled OR others THEN
            PERFORM pg_advisory_unlock($1);
            RAISE;
        END;
        seq := nextval('queued.messages_seq_seq');
    END IF;
    NEW.seq := seq & 281474976710655;
    RETURN NEW;
END
$$;

CREATE TRIGGER number_message BEFORE INSERT OR UPDATE OF seq ON queued.messages
    FOR EACH ROW EXECUTE FUNCTION queued.number_message()`, "$1", fmt.Sprint(int64(numbersLock)))

// The trigger of groups does not run for rows that Citus copies, because it also copies
// ready_groups. It copies rows when it distributes the table, and when a home moves to another
// node, which it does in a session that is a replica.
const (
	disableGroupTriggersSQL = `
ALTER TABLE queued.groups DISABLE TRIGGER ready_group_created;
ALTER TABLE queued.groups DISABLE TRIGGER ready_group_changed;
ALTER TABLE queued.groups DISABLE TRIGGER ready_group_deleted`

	enableGroupTriggersSQL = `
ALTER TABLE queued.groups ENABLE TRIGGER ready_group_created;
ALTER TABLE queued.groups ENABLE TRIGGER ready_group_changed;
ALTER TABLE queued.groups ENABLE TRIGGER ready_group_deleted`
)

const selectTriggersSQL = `
SELECT count(*) FILTER (WHERE tgname = 'number_message') > 0,
       count(*) FILTER (WHERE tgname LIKE 'ready\_group\_%' AND tgenabled <> 'O') = 0
FROM pg_trigger
WHERE tgrelid IN ('queued.messages'::regclass, 'queued.groups'::regclass)`

// setTriggers creates the triggers that only distributed tables have, and changes others.
func (s *store) setTriggers(ctx context.Context, tx *sql.Tx) error {
	var numbers, enabled bool
	err := tx.QueryRowContext(ctx, selectTriggersSQL).Scan(&numbers, &enabled)
	if err == nil && !numbers {
		err = executeEach(ctx, tx, numberMessageSQL)
	}
	if err == nil && !enabled {
		err = executeEach(ctx, tx, enableGroupTriggersSQL)
	}
	if err != nil {
		return fmt.Errorf("triggers: %w", err)
	}
	return nil
}

// keepDistributed makes functions and triggers that a migration has created again those of a
// distributed database, if it is one. distribute would do that too late: running servers use
// them from the commit of the migration.
func (s *store) keepDistributed(ctx context.Context, tx *sql.Tx) error {
	distributed, err := isDistributed(ctx, tx)
	if err != nil || !distributed {
		return err
	}
	if err := adaptFunctions(ctx, tx); err != nil {
		return err
	}
	return s.setTriggers(ctx, tx)
}

// distribute distributes the tables over the nodes if the database has Citus, and reads the
// homes. It continues where another server, or an earlier attempt, has ended.
func (s *store) distribute(ctx context.Context) error {
	var citus bool
	if err := s.db.QueryRowContext(ctx, selectCitusSQL).Scan(&citus); err != nil || !citus || s.homes == nil {
		return err
	}
	tx, err := s.beginSchemaChange(ctx, citusSettings)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := s.setOnNodes(ctx, tx); err != nil {
		return err
	}
	dropped := false
	create := func(table, statement string, args ...any) error {
		var done bool
		if err := tx.QueryRowContext(ctx, selectDistributedSQL, "queued."+table).Scan(&done); err != nil || done {
			return err
		}
		if !dropped {
			if err := executeEach(ctx, tx, dropTypedFunctionsSQL+";"+disableGroupTriggersSQL); err != nil {
				return err
			}
			dropped = true
		}
		if table == unloggedTable {
			if _, err := tx.ExecContext(ctx, setLoggedSQL); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, statement, append([]any{"queued." + table}, args...)...); err != nil {
			return fmt.Errorf("distribute table %s: %w", table, err)
		}
		return nil
	}
	for _, table := range referenceTables {
		if err := create(table, "SELECT create_reference_table($1::regclass)"); err != nil {
			return err
		}
	}
	for i, table := range distributedTables {
		statement, args := "SELECT create_distributed_table($1::regclass, 'home', colocate_with => $2)", []any{"queued." + distributedTables[0]}
		if i == 0 {
			statement, args = "SELECT create_distributed_table($1::regclass, 'home', colocate_with => 'none', shard_count => $2)", []any{citusSpace}
		}
		if err := create(table, statement, args...); err != nil {
			return err
		}
	}
	if dropped {
		if err := executeEach(ctx, tx, claimFunctionsSQL+publicFunctionsSQL); err != nil {
			return fmt.Errorf("functions: %w", err)
		}
	}
	if err := adaptFunctions(ctx, tx); err != nil {
		return err
	}
	if err := s.setTriggers(ctx, tx); err != nil {
		return err
	}
	if err := createHoldHome(ctx, tx); err != nil {
		return err
	}
	if dropped {
		if _, err := tx.ExecContext(ctx, notifyDistributedSQL); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return s.readHomes(ctx)
}

// errDistributed is the error of a server that does not know the homes of its database, and
// would not find messages by their ids.
var errDistributed = errors.New("another server has distributed the tables over several PostgreSQL servers; start this server again")

// Servers sweep after a notification that they cannot decode, and notice the homes.
const (
	notifyDistributedSQL = `SELECT pg_notify('` + notifyChannel + `', '')`

	selectHasSeveralHomesSQL = `SELECT queued.has_homes()`
)

// noticeDistribution signals that another server has distributed the tables.
func (e *engine) noticeDistribution(s *pinnedConn) {
	if e.homes.areSeveral() {
		return
	}
	has, err := read(s, "has_homes", func(row scanner) (has bool, err error) {
		err = row.Scan(&has)
		return has, err
	}, selectHasSeveralHomesSQL)
	if err == nil && has[0] {
		select {
		case e.distributed <- struct{}{}:
		default:
		}
	}
}

// selectNodeSettingsSQL reports whether the role has settings in this database, and returns
// the beginning of a statement that sets one. Citus runs it on all nodes, and on those that are
// added later.
const selectNodeSettingsSQL = `
SELECT coalesce((
           SELECT s.setconfig @> $1::text[]
           FROM pg_db_role_setting s
           JOIN pg_roles r ON r.oid = s.setrole
           JOIN pg_database d ON d.oid = s.setdatabase
           WHERE r.rolname = current_user
               AND d.datname = current_database()
       ), false),
       format('ALTER ROLE %I IN DATABASE %I SET ', current_user, current_database())`

// setOnNodes makes the settings that the statements rely on the defaults of the role. The
// connections that Citus makes from node to node have only these.
func (s *store) setOnNodes(ctx context.Context, tx *sql.Tx) error {
	var wanted []string
	for _, setting := range strings.Split(nodeSettings, ";") {
		name, value, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(setting), "SET "), " = ")
		if found {
			wanted = append(wanted, name+"="+strings.Trim(value, "'"))
		}
	}
	var done bool
	var set string
	err := tx.QueryRowContext(ctx, selectNodeSettingsSQL, textArray(wanted)).Scan(&done, &set)
	if err != nil || done {
		return err
	}
	for _, setting := range wanted {
		name, value, _ := strings.Cut(setting, "=")
		if _, err := tx.ExecContext(ctx, set+name+" = "+pq.QuoteLiteral(value)); err != nil {
			return fmt.Errorf("settings of the nodes: %w", err)
		}
	}
	return nil
}

// isDistributed reports whether the tables of a database are distributed.
func isDistributed(ctx context.Context, q querier) (is bool, err error) {
	err = q.QueryRowContext(ctx, selectHasHomesSQL).Scan(&is)
	if err == nil && is {
		err = q.QueryRowContext(ctx, selectDistributedSQL, "queued."+distributedTables[0]).Scan(&is)
	}
	return is, err
}

// readHomes reads the homes of a database whose tables are distributed.
func (s *store) readHomes(ctx context.Context) error {
	distributed, err := isDistributed(ctx, s.db)
	if err != nil || !distributed {
		return err
	}
	all, err := collect(ctx, s.db, scanKey, selectPossibleHomesSQL, maxHomes)
	if err == nil {
		s.homes.set(all)
	}
	return err
}

const selectHasHomesSQL = `
SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AND to_regclass('queued.messages') IS NOT NULL`

const selectPossibleHomesSQL = `
SELECT min(home)
FROM generate_series(0, $1::integer - 1) AS home
GROUP BY get_shard_id_for_distribution_column('queued.messages', home::smallint)
ORDER BY 1`

// holdHomeSQL creates the triggers that let a connection with holdsHomes change the shards of a
// home: they take the lock that the statements of Citus take, a ShareLock, and check that the
// home is still on this node. The lock is always that of the shard of messages, which a move of
// the home takes first. Otherwise, both could wait for each other. Whatever changes shards
// begins with a change of messages or of deduplication ids, or with claim_groups. Only
// lockGroupsSQL comes before it, without the lock of the home: if the home has moved, the INSERT
// of the messages fails and undoes the whole transaction. Citus itself needs no trigger.
const holdHomeSQL = `
CREATE OR REPLACE FUNCTION queued.hold_home() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER -- because the lock is for the owner of the table
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    shard bigint := substring(TG_TABLE_NAME FROM '[0-9]+$');
BEGIN
    IF TG_TABLE_NAME NOT LIKE 'messages\_%' THEN
        SELECT m.shardid
        INTO shard
        FROM pg_dist_shard s
        JOIN pg_dist_shard m ON m.shardminvalue = s.shardminvalue
        WHERE s.shardid = shard
            AND m.logicalrelid = 'queued.messages'::regclass;
    END IF;
    PERFORM lock_shard_metadata(5, ARRAY[shard]);
    IF NOT EXISTS (SELECT FROM pg_dist_placement p JOIN pg_dist_local_group g ON g.groupid = p.groupid WHERE p.shardid = shard) THEN
        RAISE serialization_failure USING MESSAGE = 'the home has moved to another node';
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER hold_home BEFORE INSERT OR UPDATE OR DELETE ON queued.messages
    FOR EACH STATEMENT
    WHEN (current_setting('queued.holds_homes', true) = 'on')
    EXECUTE FUNCTION queued.hold_home();

CREATE OR REPLACE TRIGGER hold_home BEFORE INSERT ON queued.deduplications
    FOR EACH STATEMENT
    WHEN (current_setting('queued.holds_homes', true) = 'on')
    EXECUTE FUNCTION queued.hold_home()`

const selectHoldHomeSQL = `
SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'queued.deduplications'::regclass AND tgname = 'hold_home')`

// holdsHomes are settings of connections that change shards: one for the triggers, and one with
// which the functions that a connection creates stay on the node.
const holdsHomes = `;
SET queued.holds_homes = 'on';
SET citus.enable_ddl_propagation = off`

// createHoldHome creates the triggers if the last one does not exist.
func createHoldHome(ctx context.Context, tx *sql.Tx) error {
	var exists bool
	err := tx.QueryRowContext(ctx, selectHoldHomeSQL).Scan(&exists)
	if err == nil && !exists {
		err = executeEach(ctx, tx, holdHomeSQL)
	}
	if err != nil {
		return fmt.Errorf("triggers of a home: %w", err)
	}
	return nil
}

// placement is the node of a home.
type placement struct {
	home   int64
	main   bool
	host   string
	port   int
	shards map[string]int64 // ids by table; empty if the node cannot name them
}

// The group of the coordinator is 0. Only nodes with metadata can execute each statement.
const selectPlacementsSQL = `
SELECT h.home, n.groupid = 0, n.nodename, n.nodeport,
       array_agg(t.name), array_agg(get_shard_id_for_distribution_column(t.name, h.home::smallint))
FROM generate_series(0, $1::integer - 1) AS h (home)
JOIN pg_catalog.pg_dist_placement p ON p.shardid = get_shard_id_for_distribution_column('queued.messages', h.home::smallint)
JOIN pg_catalog.pg_dist_node n ON n.groupid = p.groupid
CROSS JOIN unnest($2::text[]) AS t (name)
WHERE n.noderole = 'primary'
    AND n.hasmetadata
    AND n.isactive
GROUP BY h.home, n.groupid, n.nodename, n.nodeport
ORDER BY h.home`

// selectPlacements returns the nodes and the shards of all homes.
func selectPlacements(ctx context.Context, db querier) ([]placement, error) {
	var tables textArray
	for _, table := range distributedTables {
		tables = append(tables, "queued."+table)
	}
	return collect(ctx, db, func(row scanner) (p placement, err error) {
		var names []string
		var ids []int64
		err = row.Scan(&p.home, &p.main, &p.host, &p.port, pq.Array(&names), pq.Array(&ids))
		p.shards = make(map[string]int64, len(names))
		for i, name := range names {
			p.shards[name] = ids[i]
		}
		return p, err
	}, selectPlacementsSQL, maxHomes, tables)
}

// Each node has the one shard of a reference table.
const selectReferenceShardsSQL = `
SELECT 'queued.' || c.relname, s.shardid
FROM pg_catalog.pg_dist_shard s
JOIN pg_class c ON c.oid = s.logicalrelid
WHERE c.relnamespace = 'queued'::regnamespace
    AND c.relname = ANY ($1::text[])`

// selectReferenceShards returns the shards of the tables that all nodes have.
func selectReferenceShards(ctx context.Context, db querier) (map[string]int64, error) {
	ids := make(map[string]int64)
	_, err := collect(ctx, db, func(row scanner) (any, error) {
		var table string
		var id int64
		err := row.Scan(&table, &id)
		ids[table] = id
		return nil, err
	}, selectReferenceShardsSQL, textArray(referenceTables))
	return ids, err
}

// raiseKeysSQL is raiseSequencesSQL for distributed tables. Only the sequence of the
// coordinator makes keys, and they contain a home. number_message takes care of messages.
var raiseKeysSQL = fmt.Sprintf(`
DO $$
DECLARE
    used bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(%d);
    IF NOT EXISTS (SELECT FROM pg_sequence WHERE seqrelid = 'queued.queues_key_seq'::regclass AND seqmin = 1) THEN
        RETURN;
    END IF;
    SELECT max(key & 281474976710655)
    INTO used
    FROM (SELECT key FROM queued.queues UNION ALL SELECT key FROM queued.deleted_queues) all_queues;
    IF used > coalesce(pg_sequence_last_value('queued.queues_key_seq'), 0) THEN
        PERFORM setval('queued.queues_key_seq', used);
    END IF;
END
$$`, int64(sequencesLock))

// raiseSequencesSQL returns the statement that raises the sequences.
func (h *homes) raiseSequencesSQL() string {
	if h.areSeveral() {
		return raiseKeysSQL
	}
	return raiseSequencesSQL
}
