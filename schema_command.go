package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/lib/pq"

	"queued/internal/flags"
)

const schemaUsage = `queued schema prints the SQL that creates the schema of this version, or upgrades an
older one. Use it if the servers' role may not create tables.

usage: queued schema [flags]

examples:

  queued schema | psql queue
  queued schema -role app | psql queue

`

func runSchema(_ context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, _ io.Writer) error {
	var role string
	f := flags.New("queued schema", schemaUsage, stdout)
	f.WithoutVariable = []string{"role"}
	f.StringVar(&role, "role", "", "`role` of the servers, to grant the privileges they need")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	_, err := io.WriteString(stdout, schemaScript(schemaSteps(), role))
	return err
}

// schemaOfCluster is the error of the script on a Citus cluster, whose functions and triggers
// only servers create.
const schemaOfCluster = `this database has Citus: let the role of the servers own the database, and they create and upgrade the schema at their start`

// schemaScript returns SQL that migrates the schema like migrate, for any client. If it
// runs again, it changes nothing.
func schemaScript(steps []string, role string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `-- Creates the schema of queued %s, version %d, or upgrades an older one to it.
-- Existing data stays. Run it before the servers of a new version start.

BEGIN;

SELECT pg_advisory_xact_lock(%d);
%s;

DO $queued$
DECLARE
    have integer := 0;
BEGIN
    IF (%[7]s) THEN
        RAISE EXCEPTION '%[8]s';
    END IF;
    IF to_regclass('queued.schema_version') IS NOT NULL THEN
        SELECT coalesce(max(version), 0) INTO have FROM queued.schema_version;
    END IF;
    IF have > 0 AND (%[5]s) THEN
        RAISE EXCEPTION '%[6]s';
    END IF;
    IF have > %[2]d THEN
        RAISE EXCEPTION 'the database has a newer schema: version %%, this queued supports %[2]d; run the version of queued that has upgraded it, or a later one', have;
    END IF;
`, version(), len(steps), int64(schemaLock), migrationSettings, selectUnreleasedSQL, schemaUnreleased, selectCitusSQL, schemaOfCluster)
	for i, step := range steps {
		fmt.Fprintf(&b, "    IF have < %d THEN EXECUTE $step$\n%s\n$step$; END IF;\n", i+1, strings.Trim(step, "\n"))
	}
	fmt.Fprintf(&b, `    IF have < %[1]d THEN
        INSERT INTO queued.schema_version (version) VALUES (%[1]d);
    END IF;
END
$queued$;
`, len(steps))
	if role == "" {
		b.WriteString("\n-- queued schema -role NAME also prints the grants that servers need.\n")
	} else {
		fmt.Fprintf(&b, `
DO $queued$
BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %%I TO %%I', current_database(), %[2]s);
END
$queued$;

GRANT USAGE ON SCHEMA queued TO %[1]s;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA queued TO %[1]s;
GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA queued TO %[1]s;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA queued TO %[1]s;
`, pq.QuoteIdentifier(role), pq.QuoteLiteral(role))
	}
	b.WriteString("\nCOMMIT;\n")
	return b.String()
}
