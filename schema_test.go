package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
)

// schemaOf describes all tables of a database, without the order of columns.
func schemaOf(t testing.TB, s *store) (all []string) {
	t.Helper()
	all, err := collect(context.Background(), s.db, func(row scanner) (line string, err error) {
		err = row.Scan(&line)
		return line, err
	}, `
SELECT format('%s.%s %s null=%s default=%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, pg_get_expr(d.adbin, d.adrelid)) AS line
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'queued'::regnamespace AND c.relkind = 'r'
UNION ALL
SELECT format('%s options=%s', relname, reloptions) FROM pg_class WHERE relnamespace = 'queued'::regnamespace
UNION ALL
SELECT format('%s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'queued'::regnamespace
UNION ALL
SELECT indexdef FROM pg_indexes WHERE schemaname = 'queued'
ORDER BY line`)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// scriptFor returns the output of queued schema.
func scriptFor(t testing.TB, role string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(context.Background(), []string{"schema", "-role", role}, func(string) string { return "" }, nil, &out, nil); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPrintedSchemaIsThatOfServers(t *testing.T) {
	t.Parallel()
	want := schemaOf(t, newTestStoreOn(t, newPlainDatabase(t, "queued")))
	for from := range len(schemaSteps()) + 1 {
		s := newTestStoreOn(t, newPlainDatabase(t, "template1"))
		if from > 0 {
			if err := s.migrate(context.Background(), schemaSteps()[:from]); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if _, err := s.db.Exec(scriptFor(t, "")); err != nil {
				t.Fatalf("from version %d: %v", from, err)
			}
		}
		checkDiff(t, "schema", want, schemaOf(t, s))
		if version, err := schemaVersion(context.Background(), s.db); version != len(schemaSteps()) || err != nil {
			t.Errorf("version = %d, %v", version, err)
		}
	}
	newer := newTestStoreOn(t, newPlainDatabase(t, "queued"))
	if _, err := newer.db.Exec("INSERT INTO queued.schema_version (version) VALUES (999)"); err != nil {
		t.Fatal(err)
	}
	if _, err := newer.db.Exec(scriptFor(t, "")); err == nil || !strings.Contains(err.Error(), "newer schema") {
		t.Errorf("a newer schema: %v", err)
	}
}

func TestPrintedSchemaIsNotForACluster(t *testing.T) {
	t.Parallel()
	s := newTestStoreOn(t, newPlainDatabase(t, "queued"))
	if _, err := s.db.Exec("INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) VALUES (1, 'citus', 10, 11, false, '')"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.Exec(scriptFor(t, "")); err == nil || !strings.Contains(err.Error(), schemaOfCluster) {
		t.Errorf("on a cluster: %v", err)
	}
}

// The role of the servers may only read and write the tables that a DBA has created.
func TestServerRunsWithTheRightsOfThePrintedSchema(t *testing.T) {
	t.Parallel()
	role := newTestRole(t)
	dsn := newPlainDatabase(t, "template1")
	admin := newTestStoreOn(t, dsn)
	if got := startOn(t, dsn+" user="+role); !strings.Contains(got, fmt.Sprintf("from version 0 to %d", len(schemaSteps()))) || !strings.Contains(got, askDBA) {
		t.Errorf("without the schema the start ends with %q", got)
	}
	if err := admin.migrate(context.Background(), schemaSteps()); err != nil {
		t.Fatal(err)
	}
	dsn += " user=" + role
	if got := startOn(t, dsn); !strings.Contains(got, "permission denied for schema queued") || !strings.Contains(got, askDBA) {
		t.Errorf("without privileges the start ends with %q", got)
	}
	if _, err := admin.db.Exec(strings.ReplaceAll(grants, "PUBLIC", role)); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.db.Exec("DO $$ BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database()); END $$"); err != nil {
		t.Fatal(err)
	}
	if got := startOn(t, dsn); !strings.Contains(got, "permission denied for database") || !strings.Contains(got, askDBA) {
		t.Errorf("without the privilege to connect the start ends with %q", got)
	}
	if _, err := admin.db.Exec(scriptFor(t, role)); err != nil {
		t.Fatal(err)
	}
	r := runServer(t, "-database-url", dsn)
	r.client().must(200, "GET", "/readyz", "")
	runExample(newTestServerOn(t, dsn))
}
