package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// On the node of a home, the statements of a publish, a claim, an ack, a nack, an extension
// and a release name the tables in which Citus stores the rows of this home: its shards. They
// are ordinary tables, so PostgreSQL plans such a statement once, and executes it without
// other nodes. A statement that names the distributed table is planned twice for each
// execution, and if it has several steps, they become transactions on all nodes.
//
// Citus moves a home while no statement holds the lock of the home. Its own statements take
// the lock, and for those here a trigger takes it (holdHomeSQL). If the home has moved in the
// meantime, the trigger refuses the statement, which is executed again with the name of the
// distributed table.

// nodeShards has the shards of a node, as far as is known.
type nodeShards struct {
	atomic.Pointer[shards]
	moved func() // called when a home is not on the node any more
}

// shards are names of tables. They are replaced when a home moves.
type shards struct {
	ofHome map[int64]map[string]int64 // ids by home and table
	ofAll  map[string]int64           // ids of the tables that all nodes have, by table
	named  sync.Map                   // results of name
}

// namedStatement is a statement about a home.
type namedStatement struct {
	home      int64
	statement string
}

// tableName matches the names of tables in statements, and other names.
var tableName = regexp.MustCompile(`\bqueued\.[a-z_]+\b`)

// name returns a statement with the names of the shards of a home.
func (v *shards) name(home int64, statement string) string {
	key := namedStatement{home, statement}
	if text, known := v.named.Load(key); known {
		return text.(string)
	}
	text := tableName.ReplaceAllStringFunc(statement, func(table string) string {
		if id, found := v.ofHome[home]["queued.messages"]; found && table == claimGroupsFunction {
			return temporarySchema + "claim_groups_" + strconv.FormatInt(id, 10)
		}
		if id, found := v.ofHome[home][table]; found {
			return table + "_" + strconv.FormatInt(id, 10)
		}
		if id, found := v.ofAll[table]; found {
			return table + "_" + strconv.FormatInt(id, 10)
		}
		return table
	})
	v.named.Store(key, text)
	return text
}

// equal reports whether two nodes have the same shards.
func (v *shards) equal(w *shards) bool {
	return v != nil && maps.Equal(v.ofAll, w.ofAll) && maps.EqualFunc(v.ofHome, w.ofHome, maps.Equal[map[string]int64, map[string]int64])
}

// The function claim_groups names distributed tables. So a connection to the node of a home
// creates a function of its own with the names of the shards, when it first claims groups of
// the home. PostgreSQL drops the function with the connection, or with the shard.
const (
	claimGroupsFunction = "queued.claim_groups"
	temporarySchema     = "pg_temp."
)

// claimGroupsOnShardsSQL creates claim_groups with a first statement that takes the lock of the
// home: without a change of messages no trigger does.
var claimGroupsOnShardsSQL = func() string {
	_, text, _ := strings.Cut(claimFunctionsSQL, "FUNCTION "+claimGroupsFunction+"(")
	text, _, _ = strings.Cut(text, "\n$$;")
	return "CREATE OR REPLACE FUNCTION " + claimGroupsFunction + "(" +
		strings.Replace(text, "\nBEGIN\n", "\nBEGIN\n    UPDATE queued.messages SET home = own_home WHERE false;\n", 1) + "\n$$"
}()

// createClaimGroups creates the function of the connection that a statement calls, if it calls
// one.
func (s *pinnedConn) createClaimGroups(v *shards, home int64, statement string) error {
	if !strings.Contains(statement, temporarySchema) {
		return nil
	}
	name := v.name(home, claimGroupsFunction)
	err := s.connect()
	if err == nil && !s.functions[name] {
		_, err = s.conn.ExecContext(context.Background(), v.name(home, claimGroupsOnShardsSQL))
		s.functions[name] = err == nil
	}
	s.check(err)
	return err
}

// readInHome is read for a statement about one home that changes no rows of other homes. On the
// node of the home it names the shards. A statement that only reads may not notice that the
// home has moved: its result was true before that.
func readInHome[T any](s *pinnedConn, home int64, name string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	var v *shards
	if s.shards != nil {
		v = s.shards.Load()
	}
	if v == nil || v.ofHome[home] == nil {
		return read(s, name, scan, query, args...)
	}
	statement := v.name(home, query)
	err := s.createClaimGroups(v, home, statement)
	var all []T
	if err == nil {
		all, err = readPlanned(s, true, name, scan, statement, args...)
	}
	// The role may not create temporary functions.
	if !s.begun && pq.As(err, pqerror.InsufficientPrivilege) != nil {
		return read(s, name, scan, query, args...)
	}
	if pq.As(err, pqerror.TRSerializationFailure, pqerror.UndefinedTable, pqerror.UndefinedFunction, pqerror.UndefinedObject) == nil {
		return all, err
	}
	delete(s.functions, v.name(home, claimGroupsFunction))
	rest := &shards{ofHome: maps.Clone(v.ofHome), ofAll: v.ofAll}
	delete(rest.ofHome, home)
	s.shards.CompareAndSwap(v, rest)
	s.shards.moved()
	if s.begun {
		return nil, fmt.Errorf("%w: %w", errHomeMoved, err)
	}
	return read(s, name, scan, query, args...)
}

// errHomeMoved is the error of a transaction that had no effect, because a home has moved to
// another node. Another attempt finds the home.
var errHomeMoved = errors.New("home has moved to another node")
