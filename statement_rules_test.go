package main

import (
	"database/sql"
	"maps"
	"slices"
	"strings"
	"testing"
)

// Citus, an extension of PostgreSQL, spreads large tables over machines by a column, and
// copies small ones to all machines. It refuses a statement that breaks one of these rules,
// or runs it at many times the cost (multi_router_planner.c in its source). The tests do not
// run on Citus. So this one keeps all statements within the rules, except those in
// ruleExceptions.
const (
	ruleKey        = "key"         // a query compares the key of each distributed table with a parameter, or inserts a parameter
	ruleInsertWith = "INSERT WITH" // no INSERT is in WITH, or has WITH or a subquery before its SELECT
	ruleLock       = "FOR UPDATE"  // no query in WITH has FOR UPDATE and a table that is not distributed; beside an INSERT in WITH, none has FOR UPDATE and what is not a table
	ruleTid        = "ctid"        // beside an INSERT in WITH, a modification by ctid has its own WITH: Citus runs the others one after another
	ruleVolatile   = "volatile"    // no volatile function is in a modification, or in WITH before it
	ruleSet        = "SET"         // no function that is not immutable has a column as its argument in SET, or is in CASE or coalesce there or in a subquery of FROM
	ruleWhere      = "WHERE"       // the same for WHERE of a modification
	ruleReturning  = "RETURNING"   // all functions are immutable
	ruleConflict   = "ON CONFLICT" // the same
)

// distributionKey is the column by which spreadTables are distributed. Views of these are with them.
const distributionKey = "home"

var spreadTables = []string{"messages", "live_messages", "message_states", "groups", "ready_groups", "consumed_messages", "deduplications", "job_counts"}

// clusterRules is what the rules need to know of the database, by oid.
type clusterRules struct {
	tables    map[string]string // names of the tables and views of the schema
	keys      map[string]string // numbers of the columns distributionKey, by table
	mutable   map[string]string // s or v: volatility of the functions that are not immutable
	equalSign map[string]string // functions of the operator =
}

func newClusterRules(t testing.TB, db *sql.DB) *clusterRules {
	t.Helper()
	read := func(query string) map[string]string {
		all := make(map[string]string)
		for _, row := range mustSelect(t, db, query) {
			oid, value, _ := strings.Cut(row, " ")
			all[oid] = value
		}
		return all
	}
	return &clusterRules{
		tables:    read("SELECT oid || ' ' || relname FROM pg_class WHERE relnamespace = 'queued'::regnamespace"),
		keys:      read("SELECT attrelid || ' ' || attnum FROM pg_attribute WHERE attname = '" + distributionKey + "'"),
		mutable:   read("SELECT oid || ' ' || provolatile::text FROM pg_proc WHERE provolatile <> 'i'"),
		equalSign: read("SELECT oprcode::oid || ' =' FROM pg_operator WHERE oprname = '='"),
	}
}

// broken returns the rules that queries break, in order.
func (c *clusterRules) broken(queries []*treeNode) []string {
	rules := make(map[string]bool)
	for _, q := range queries {
		c.check(q, func(rule string, holds bool) {
			if !holds {
				rules[rule] = true
			}
		})
	}
	return slices.Sorted(maps.Keys(rules))
}

const (
	cmdSelect, cmdUpdate, cmdInsert = "1", "2", "3" // of commandType
	rteRelation, rteJoin            = "0", "2"      // of rtekind
	attributeTid                    = "-1"          // of varattno
)

// check checks a query, without the queries in it.
func (c *clusterRules) check(q *treeNode, rule func(name string, holds bool)) {
	command := q.word("commandType")
	for i, table := range q.nodes("rtable") {
		rule(ruleKey, !c.isDistributed(table) || c.namesKey(q, i+1))
	}
	apart := slices.ContainsFunc(q.nodes("cteList"), func(with *treeNode) bool { return with.nodes("ctequery")[0].word("commandType") == cmdInsert })
	for _, with := range q.nodes("cteList") {
		inner := with.nodes("ctequery")[0]
		locks := len(inner.nodes("rowMarks")) > 0
		rule(ruleLock, !locks || !slices.ContainsFunc(find(inner.nodes("rtable"), "RANGETBLENTRY", "RTE"), func(table *treeNode) bool {
			return c.tables[table.word("relid")] != "" && !c.isDistributed(table)
		}))
		rule(ruleLock, !apart || !locks || !slices.ContainsFunc(inner.nodes("rtable"), func(table *treeNode) bool {
			kind := table.word("rtekind")
			return kind != rteRelation && kind != rteJoin
		}))
		rule(ruleTid, !apart || !slices.ContainsFunc(find(inner.nodes("jointree"), "VAR"), func(column *treeNode) bool {
			return column.word("varattno") == attributeTid
		}) || !slices.ContainsFunc(inner.nodes("rtable"), func(table *treeNode) bool { return table.number("ctelevelsup") > 0 }))
		rule(ruleInsertWith, inner.word("commandType") != cmdInsert)
		rule(ruleVolatile, command == cmdSelect || len(c.calls(inner.nodes("targetList", "jointree", "rtable"), "v")) == 0)
	}
	switch command {
	case cmdSelect:
		return
	case cmdInsert:
		rule(ruleInsertWith, len(q.nodes("cteList")) == 0 && q.word("hasSubLinks") == "false")
	case cmdUpdate:
		rule(ruleSet, !c.depends(q.nodes("targetList")) && !c.dependsInCase(q.nodes("rtable")))
		rule(ruleVolatile, len(c.calls(q.nodes("targetList"), "v")) == 0)
	}
	rule(ruleWhere, !c.depends(q.nodes("jointree")))
	rule(ruleVolatile, len(c.calls(q.nodes("jointree"), "v")) == 0)
	rule(ruleReturning, len(c.calls(q.nodes("returningList"), "sv")) == 0)
	rule(ruleConflict, len(c.calls(q.nodes("onConflict"), "sv")) == 0)
}

// isDistributed reports whether a table of a query is distributed. excluded of ON CONFLICT is
// none.
func (c *clusterRules) isDistributed(table *treeNode) bool {
	return slices.Contains(spreadTables, c.tables[table.word("relid")]) && table.word("relkind") != "c"
}

// namesKey reports whether a query names the key of its table number i by a parameter.
func (c *clusterRules) namesKey(q *treeNode, i int) bool {
	key := c.keys[q.nodes("rtable")[i-1].word("relid")]
	if q.word("commandType") == cmdInsert && q.number("resultRelation") == i {
		return slices.ContainsFunc(q.nodes("targetList"), func(column *treeNode) bool {
			return column.word("resno") == key && c.isParameter(valueOf(q, column.nodes("expr")[0]))
		})
	}
	conditions := q.nodes("jointree")
	for n := 0; n < len(conditions); n++ {
		switch v := conditions[n]; {
		case v.label == "FROMEXPR" || v.label == "JOINEXPR":
			conditions = append(conditions, v.nodes("fromlist", "larg", "rarg", "quals")...)
		case v.label == "BOOLEXPR" && v.word("boolop") == "and":
			conditions = append(conditions, v.nodes("args")...)
		case v.label == "OPEXPR" && c.equalSign[v.word("opfuncid")] != "":
			left, right := v.nodes("args")[0], v.nodes("args")[1]
			isKey := func(n *treeNode) bool {
				return n.label == "VAR" && n.number("varno") == i && n.word("varattno") == key && n.word("varlevelsup") == "0"
			}
			if isKey(left) && c.isParameter(right) || isKey(right) && c.isParameter(left) {
				return true
			}
		}
	}
	return false
}

// valueOf returns the expression that an INSERT … SELECT selects for a column.
func valueOf(insert, value *treeNode) *treeNode {
	if value.label == "VAR" {
		if rows := insert.nodes("rtable")[value.number("varno")-1].nodes("subquery"); len(rows) > 0 {
			return rows[0].nodes("targetList")[value.number("varattno")-1].nodes("expr")[0]
		}
	}
	return value
}

// isParameter reports whether the value of an expression depends on parameters only.
func (c *clusterRules) isParameter(n *treeNode) bool {
	all := []*treeNode{n}
	return len(find(all, "PARAM")) > 0 && len(find(all, "VAR", "QUERY")) == 0 && len(c.calls(all, "sv")) == 0
}

// calls returns the calls of functions and operators in nodes that have one of the volatilities.
func (c *clusterRules) calls(nodes []*treeNode, volatilities string) []*treeNode {
	return slices.DeleteFunc(find(nodes, "FUNCEXPR", "OPEXPR", "SCALARARRAYOPEXPR"), func(n *treeNode) bool {
		v := c.mutable[n.word("funcid")+n.word("opfuncid")]
		return v == "" || !strings.Contains(volatilities, v)
	})
}

// depends reports whether the value of a function that is not immutable depends on the row,
// or is needed for some rows only.
func (c *clusterRules) depends(nodes []*treeNode) bool {
	return len(find(c.calls(nodes, "sv"), "VAR")) > 0 || c.dependsInCase(nodes)
}

// dependsInCase reports whether the value of such a function is needed for some rows only.
func (c *clusterRules) dependsInCase(nodes []*treeNode) bool {
	return len(c.calls(find(nodes, "CASE", "CASEEXPR", "COALESCE", "COALESCEEXPR"), "sv")) > 0
}

func TestStatementsKeepTheRulesOfACluster(t *testing.T) {
	t.Parallel()
	p := newStatementParser(t)
	rules := newClusterRules(t, p.db)
	all := statementsOfProgram(t)
	maps.Copy(all, p.functionsInSQL())
	found := make(map[string]bool)
	for name, statements := range all {
		for _, statement := range statements {
			for _, rule := range rules.broken(p.queries(statement)) {
				found[rule+": "+name] = true
			}
		}
	}
	expected := make(map[string]bool)
	for _, e := range ruleExceptions {
		for name := range strings.FieldsSeq(e.statements) {
			expected[e.rule+": "+name] = true
		}
	}
	checkDiff(t, "exceptions and statements that break rules", expected, found)
}

func TestRulesOfAClusterFindWhatBreaksThem(t *testing.T) {
	t.Parallel()
	p := newStatementParser(t)
	rules := newClusterRules(t, p.db)
	for _, v := range []struct{ broken, statement string }{
		{"", "SELECT m.id FROM queued.messages m JOIN queued.queues q ON q.key = m.queue_key WHERE $1 = m.home AND m.seq > 1"},
		{"", "SELECT 1 FROM queued.queues q LEFT JOIN queued.messages m ON m.home = $1 AND m.seq > 1"},
		{ruleKey, "SELECT id FROM queued.messages"},
		{ruleKey, "SELECT id FROM queued.messages WHERE home = $1 OR seq = 1"},
		{ruleKey, "SELECT id FROM queued.messages WHERE home = 1"},
		{ruleKey, "SELECT id FROM queued.messages WHERE home > $1"},
		{ruleKey, "SELECT id FROM queued.messages WHERE home IS NOT DISTINCT FROM $1"},
		{ruleKey, "SELECT id FROM queued.messages WHERE seq = $1"},
		{ruleKey, "SELECT id FROM queued.messages WHERE home = in_flight::integer + $1"},
		{"", "SELECT id FROM queued.messages WHERE home = ($1::bigint >> 48)::smallint"},
		{ruleKey, "SELECT id FROM queued.live_messages WHERE queue_id = $1"},
		{ruleKey, "SELECT m.id FROM queued.messages m JOIN queued.groups g ON g.queue_key = m.queue_key WHERE m.home = $1"},
		{ruleKey, "SELECT key FROM queued.queues q WHERE EXISTS (SELECT FROM queued.messages m WHERE m.queue_key = q.key) AND q.key = $1"},
		{ruleKey, "WITH due AS (SELECT ctid AS tid FROM queued.messages WHERE home = $1) DELETE FROM queued.messages m USING due WHERE m.ctid = due.tid"},
		{"", "WITH due AS (SELECT ctid AS tid FROM queued.messages WHERE home = $1) DELETE FROM queued.messages m USING due WHERE m.ctid = due.tid AND m.home = $1"},
		{ruleKey, "INSERT INTO queued.groups (home, id, ready_at) SELECT u.home, u.id, now() FROM unnest($1::smallint[], $2::text[]) AS u (home, id)"},
		{"", "INSERT INTO queued.groups (home, id, ready_at) SELECT $1::smallint, u.id, now() FROM unnest($2::text[]) AS u (id)"},
		{"", "INSERT INTO queued.groups (home, id, ready_at) VALUES ($1, $2, now())"},
		{ruleInsertWith, "WITH new AS (INSERT INTO queued.groups (home, id, ready_at) VALUES ($1, $2, $3) RETURNING id) SELECT id FROM new"},
		{ruleInsertWith, "WITH new AS (SELECT 1) INSERT INTO queued.groups (home, id, ready_at) SELECT $1::smallint, $2, $3 FROM new"},
		{ruleInsertWith, "INSERT INTO queued.groups (home, id, ready_at) VALUES ($1, $2, (SELECT max(created_at) FROM queued.topics))"},
		{ruleLock, "WITH due AS (SELECT m.id FROM queued.messages m JOIN queued.queues q ON q.key = m.queue_key WHERE m.home = $1 FOR UPDATE OF m) SELECT id FROM due"},
		{"", "WITH due AS (SELECT id FROM queued.messages WHERE home = $1 AND (SELECT version FROM queued.settings) = $2 FOR UPDATE) SELECT id FROM due"},
		{ruleInsertWith + ", " + ruleTid, "WITH due AS (SELECT ctid AS tid FROM queued.messages WHERE home = $1), gone AS (DELETE FROM queued.messages m USING due WHERE m.ctid = due.tid AND m.home = $1 RETURNING m.group_id), " +
			"new AS (INSERT INTO queued.groups (home, id, ready_at) SELECT $1::smallint, group_id, $2 FROM gone) SELECT group_id FROM gone"},
		{ruleInsertWith, "WITH gone AS (WITH due AS (SELECT ctid AS tid FROM queued.messages WHERE home = $1) DELETE FROM queued.messages m USING due WHERE m.ctid = due.tid AND m.home = $1 RETURNING m.group_id), " +
			"new AS (INSERT INTO queued.groups (home, id, ready_at) SELECT $1::smallint, group_id, $2 FROM gone) SELECT group_id FROM gone"},
		{ruleLock + ", " + ruleInsertWith, "WITH due AS (SELECT m.group_id FROM unnest($2::uuid[]) AS a (id) JOIN queued.messages m ON m.id = a.id AND m.home = $1 FOR UPDATE OF m), " +
			"new AS (INSERT INTO queued.groups (home, id, ready_at) SELECT $1::smallint, group_id, $3 FROM due) SELECT group_id FROM due"},
		{"", "WITH due AS (SELECT m.group_id FROM unnest($2::uuid[]) AS a (id) JOIN queued.messages m ON m.id = a.id AND m.home = $1 FOR UPDATE OF m) SELECT group_id FROM due"},
		{ruleVolatile, "UPDATE queued.queues SET updated_at = clock_timestamp()"},
		{ruleVolatile, "WITH now AS (SELECT clock_timestamp() AS at) UPDATE queued.queues SET updated_at = now.at FROM now"},
		{"", "WITH now AS (SELECT clock_timestamp() AS at) SELECT at FROM now"},
		{"", "UPDATE queued.queues SET updated_at = now()"},
		{ruleSet, "UPDATE queued.queues SET updated_at = created_at + interval '1 second'"},
		{ruleSet, "UPDATE queued.queues SET updated_at = coalesce(updated_at, now())"},
		{ruleSet, "UPDATE queued.queues SET updated_at = CASE WHEN paused THEN now() END"},
		{ruleSet, "UPDATE queued.queues q SET updated_at = c.at FROM (SELECT CASE WHEN $1 THEN now() END AS at) c"},
		{"", "WITH c AS MATERIALIZED (SELECT CASE WHEN $1 THEN now() END AS at) UPDATE queued.queues q SET updated_at = c.at FROM c"},
		{"", "UPDATE queued.queues q SET updated_at = c.at FROM (SELECT created_at + interval '1 second' AS at FROM queued.topics) c"},
		{"", "UPDATE queued.queues SET updated_at = CASE WHEN paused THEN updated_at ELSE created_at END"},
		{ruleWhere, "DELETE FROM queued.queues WHERE created_at + interval '1 day' < $1"},
		{"", "DELETE FROM queued.queues WHERE created_at < now() - interval '1 day'"},
		{ruleReturning, "DELETE FROM queued.queues RETURNING now()"},
		{ruleConflict, "INSERT INTO queued.topics AS t (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET created_at = now()"},
		{"", "INSERT INTO queued.topics AS t (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET created_at = least(t.created_at, excluded.created_at)"},
	} {
		checkDiff(t, v.statement, v.broken, strings.Join(rules.broken(p.queries(v.statement)), ", "))
	}
}

// ruleExceptions are the statements that break a rule, each with the reason. The test fails
// also if one of them keeps the rule.
var ruleExceptions = []struct{ rule, reason, statements string }{
	{ruleKey, "it inserts rows whose home it reads from other rows", `
		ackMessagesSQL ackReceiptsSQL deleteNamedSQL extendMessagesSQL extendReceiptsSQL finishJobsSQL insertGroupedSQL
		insertMessagesSQL insertUncommonSQL lockGroupsOfJobsSQL lockTakenSQL nackMessagesSQL releaseMessagesSQL restoreMessagesSQL
		storeJobsSQL storeTakenSQL wakeTakenSQL`},
	{ruleKey, "it reads all homes when the server starts", `
		raiseSequencesSQL`},
	{ruleKey, "it looks for messages that have moved in all homes", `
		selectLocationsSQL queued.home_now`},
	{ruleKey, "it sums over all queues", `
		selectJobCountsSQL`},
	{ruleInsertWith, "it changes messages and their groups in one statement", `
		ackMessagesSQL ackReceiptsSQL deleteNamedSQL extendMessagesSQL extendReceiptsSQL finishJobsSQL insertDeduplicationsSQL insertGroupedSQL
		insertMessagesSQL insertUncommonSQL keepConsumedSQL nackMessagesSQL releaseMessagesSQL restoreMessagesSQL`},
	{ruleInsertWith, "its WITH is part of the SELECT, and no step of its own", `
		wakeTakenSQL`},
	{ruleInsertWith, "it is not on a hot path", `
		deleteQueueSQL insertMoveTaskSQL insertQueueSQL`},
	{ruleReturning, "it returns the current time", `
		storeJobsSQL`},
}
