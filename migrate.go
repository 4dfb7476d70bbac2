package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"
)

//go:embed schema.sql
var schemaSQL string

var (
	//go:embed functions_claim.sql
	claimFunctionsSQL string
	//go:embed functions_public.sql
	publicFunctionsSQL string
)

// schemaSteps returns the parts of schema.sql, without the line that begins each:
// the first n of them make version n of the schema. The last one also has the functions.
func schemaSteps() []string {
	steps := strings.Split(schemaSQL, "\n-- step ")[1:]
	for i, step := range steps {
		_, steps[i], _ = strings.Cut(step, "\n")
	}
	steps[len(steps)-1] += claimFunctionsSQL + publicFunctionsSQL
	return steps
}

// schemaLock is the key of the advisory lock of a migration. Servers that start
// together need it: CREATE TABLE IF NOT EXISTS fails when two run it at the same time.
const schemaLock = 0x71756575_65640001

// migrationSettings are the settings of the transaction of a migration. PostgreSQL ignores
// those of Citus.
var migrationSettings = fmt.Sprintf(`SET LOCAL search_path = pg_catalog;
SET LOCAL lock_timeout = %d;
SET LOCAL default_table_access_method = heap;
`, lockTimeout.Milliseconds()) + citusSettings

// What migrate returns for schemas that this version cannot upgrade.
var (
	errSchemaNewer      = errors.New("the database has a newer schema")
	errSchemaUnreleased = errors.New(schemaUnreleased)
)

const schemaUnreleased = `the schema "queued" was created by a build before the first release: delete it with all its messages (DROP SCHEMA queued CASCADE), or use another database`

// migrate brings the schema to the version of the last step. It changes nothing, and
// needs no right to, if the schema has that version.
func (s *store) migrate(ctx context.Context, steps []string) error {
	version, err := schemaVersion(ctx, s.db)
	if err != nil || version == len(steps) {
		return err
	}
	tx, err := s.beginSchemaChange(ctx, migrationSettings)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if version, err = schemaVersion(ctx, tx); err != nil || version == len(steps) {
		return err // another server has migrated
	}
	if version > len(steps) {
		return fmt.Errorf("%w: version %d, this queued supports %d; run the version of queued that has upgraded it, or a later one", errSchemaNewer, version, len(steps))
	}
	for i, step := range steps[version:] {
		if err := executeEach(ctx, tx, step); err != nil {
			return fmt.Errorf("schema step %d, from version %d to %d: %w", version+i+1, version, len(steps), err)
		}
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO queued.schema_version (version) VALUES ($1)", len(steps)); err != nil {
		return err
	}
	if err := s.keepDistributed(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

// beginSchemaChange begins a transaction with settings, when no other server is in one: the
// first changes the schema for all, so it may take long. With migrationSettings its statements
// wait for their locks no longer than others do, which queue up behind them.
func (s *store) beginSchemaChange(ctx context.Context, settings string) (*sql.Tx, error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	if _, err = tx.ExecContext(ctx, "SET LOCAL lock_timeout = 0"); err == nil {
		_, err = tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(schemaLock))
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, settings)
	}
	if err != nil {
		tx.Rollback()
		return nil, err
	}
	return tx, nil
}

// executeEach executes the statements of a script one by one. Citus sends the text of a
// definition to other nodes, and for several statements at once that would be all of them.
func executeEach(ctx context.Context, tx *sql.Tx, script string) error {
	for _, statement := range statementsOf(script) {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// scriptToken matches what may contain a semicolon, and a semicolon that ends a statement.
var scriptToken = regexp.MustCompile(`(?s)--[^\n]*|'(?:[^']|'')*'|\$\$.*?\$\$|;`)

// statementsOf returns the statements of a script of ours, with the comments before them.
func statementsOf(script string) (all []string) {
	begin := 0
	for _, at := range scriptToken.FindAllStringIndex(script, -1) {
		if script[at[0]:at[1]] == ";" {
			all = append(all, strings.TrimSpace(script[begin:at[0]]))
			begin = at[1]
		}
	}
	if last := strings.TrimSpace(script[begin:]); last != "" {
		all = append(all, last)
	}
	return all
}

// selectUnreleasedSQL reports whether a build before the first release created the tables:
// these lack a column that all releases have.
const selectUnreleasedSQL = `
SELECT EXISTS (
    SELECT
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT array_agg(a.attname::text) AS names
        FROM pg_attribute a
        WHERE a.attrelid = c.oid
    ) columns
    WHERE n.nspname = 'queued'
        AND c.relkind IN ('r', 'p')
        AND c.relname = 'queues'
        AND 'deduplication_window_seconds' <> ALL (names)
)`

// schemaVersion returns 0 for a database without the schema, and errSchemaUnreleased
// if a build before the first release created it.
func schemaVersion(ctx context.Context, q querier) (version int, err error) {
	var exists, unreleased bool
	// Not to_regclass, which may read from a cache that is older than a lock that this
	// transaction has waited for.
	err = q.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'queued' AND tablename = 'schema_version')").Scan(&exists)
	if err != nil || !exists {
		return 0, err
	}
	if err := q.QueryRowContext(ctx, selectUnreleasedSQL).Scan(&unreleased); err != nil {
		return 0, err
	}
	if unreleased {
		return 0, errSchemaUnreleased
	}
	err = q.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) FROM queued.schema_version").Scan(&version)
	return version, err
}

// errSchema is returned by check if the statements cannot use the schema.
var errSchema = errors.New("database schema is incomplete")

const selectLackingSQL = `
SELECT what
FROM (
    SELECT CASE
               WHEN c.oid IS NULL THEN 'queued.' || name || ' is missing'
               WHEN c.relkind NOT IN ('r', 'p', 'S', 'v') OR (c.relkind = 'v') <> is_view THEN 'queued.' || name || ' is not a ' || CASE WHEN is_view THEN 'view' ELSE 'table' END
               ELSE 'role ' || current_user || ' lacks privileges on queued.' || name
           END AS what
    FROM unnest('{topics,queues,deleted_queues,messages,settings,groups,consumed_messages,deduplications,job_counts,move_tasks,group_changes,ready_groups,schema_version,live_messages,message_states,queues_key_seq,messages_seq_seq}'::text[]) AS name
    CROSS JOIN LATERAL (SELECT name IN ('live_messages', 'message_states') AS is_view) v
    LEFT JOIN pg_namespace n ON n.nspname = 'queued'
    LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = name
    WHERE CASE
              WHEN c.relkind = 'S' THEN NOT (has_sequence_privilege(c.oid, 'SELECT') AND has_sequence_privilege(c.oid, 'UPDATE'))
              WHEN is_view OR name = 'schema_version' THEN NOT has_table_privilege(c.oid, 'SELECT')
              ELSE NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                  AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
          END IS NOT FALSE
        OR c.relkind NOT IN ('r', 'p', 'S', 'v')
        OR (c.relkind = 'v') <> is_view
        OR NOT has_schema_privilege(n.oid, 'USAGE')
    UNION ALL
    SELECT CASE WHEN p.oid IS NULL THEN 'function queued.' || name || ' is missing' ELSE 'role ' || current_user || ' lacks privileges on function queued.' || name END
    FROM unnest('{ack,claim_groups,comparable,contains,nack,publish,receive,search_messages,send}'::text[]) AS name
    LEFT JOIN pg_namespace n ON n.nspname = 'queued'
    LEFT JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = name
    WHERE CASE WHEN name IN ('claim_groups', 'comparable', 'contains', 'search_messages') THEN has_function_privilege(p.oid, 'EXECUTE') ELSE p.oid IS NOT NULL END IS NOT TRUE -- servers do not call the others
) lacking
ORDER BY what LIKE '%function queued.%', what
LIMIT 3`

// check returns errSchema if tables or functions are missing, if something else has their
// names, or if the role may not use them.
func (s *store) check(ctx context.Context) error {
	lacking, err := collect(ctx, s.on("check_schema"), func(row scanner) (what string, err error) {
		err = row.Scan(&what)
		return what, err
	}, selectLackingSQL)
	if err == nil && len(lacking) > 0 {
		return fmt.Errorf("%w: %s; %s", errSchema, strings.Join(lacking, ", "), askDBA)
	}
	return err
}

// prepareDatabase checks the database, migrates its schema through a store without a
// statement timeout, and applies the settings of the flags and the topology. It retries
// while the database is unavailable.
func prepareDatabase(ctx context.Context, d *database, s, unlimited *store, c *config, log *slog.Logger) error {
	return retry(ctx, log, func() error {
		err := checkEncoding(ctx, s)
		if err == nil {
			err = checkSessions(ctx, s)
		}
		if err == nil {
			err = unlimited.migrate(ctx, schemaSteps())
		}
		if err == nil {
			err = unlimited.distribute(ctx)
		}
		if err == nil {
			err = s.check(ctx)
		}
		if err == nil {
			err = d.sequences.raiseOn(ctx, unlimited.db)
		}
		if err == nil {
			err = s.shareFlags(ctx, c)
		}
		if err == nil && c.topology != nil {
			if err = c.topology.apply(ctx, s, log); errors.Is(err, errNotFound) {
				return fmt.Errorf("-topology: %w", err)
			}
		}
		return err
	})
}

const (
	selectFlagsSQL = `
SELECT deduplication_window_seconds, max_message_bytes
FROM queued.settings`

	updateFlagsSQL = `
UPDATE queued.settings
SET deduplication_window_seconds = $1, max_message_bytes = $2`
)

// shareFlags stores the flags that SQL functions need, for all servers. It changes nothing,
// and needs no right to, if the values are the same.
func (s *store) shareFlags(ctx context.Context, c *config) error {
	type shared struct{ window, bytes int64 }
	var stored shared
	want := shared{int64(c.deduplicationWindow / time.Second), c.limits.maxBody}
	err := s.on("shared_flags").QueryRowContext(ctx, selectFlagsSQL).Scan(&stored.window, &stored.bytes)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // ping reports that
	}
	if err == nil && stored != want {
		_, err = s.on("share_flags").ExecContext(ctx, updateFlagsSQL, want.window, want.bytes)
	}
	return asUnavailable(err)
}

// retry calls try each second until it succeeds. It returns an error if ctx is done,
// or if only the user can remove the cause.
func retry(ctx context.Context, log *slog.Logger, try func() error) error {
	var logged string
	for {
		err := try()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errNotFound): // what the topology refers to
			return err
		case hopeless(err):
			if _, remedy, _ := pgErrorKindOf(err); remedy != "" {
				return fmt.Errorf("database: %w; %s", err, remedy)
			}
			return fmt.Errorf("database: %w", err)
		}
		if logged != err.Error() {
			logged = err.Error()
			log.Warn("database unavailable, retrying", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

var errEncoding = errors.New("encoding must be UTF8")

func checkEncoding(ctx context.Context, s *store) error {
	var encoding string
	err := s.db.QueryRowContext(ctx, "SELECT current_setting('server_encoding')").Scan(&encoding)
	if err == nil && encoding != "UTF8" {
		return fmt.Errorf("%w, not %s; name a database with encoding UTF8 in -database-url", errEncoding, encoding)
	}
	return err
}

var errPooler = errors.New("the connection pooler is not in session mode (PgBouncer: set pool_mode = session)")

// checkSessions returns errPooler if a connection to PostgreSQL changes its client.
func checkSessions(ctx context.Context, s *store) error {
	first, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer first.Close()
	second, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer second.Close()
	return checkDistinct(ctx, first, second)
}

// checkDistinct returns errPooler if two clients have the same connection to PostgreSQL
// at the same time.
func checkDistinct(ctx context.Context, clients ...querier) error {
	seen := make(map[int]bool)
	for _, c := range clients {
		var pid int
		if err := c.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			return err
		}
		if seen[pid] {
			return errPooler
		}
		seen[pid] = true
	}
	return nil
}

// hopeless reports whether an error at the start lasts until the user removes its cause.
func hopeless(err error) bool {
	return errors.Is(err, errSchemaNewer) || errors.Is(err, errSchemaUnreleased) || errors.Is(err, errSchema) || errors.Is(err, errEncoding) || errors.Is(err, errPooler) || untrusted(err) || means(err, needsOperator)
}
