package main

// Statements of the engine are prepared once on each connection, often while the tables
// are empty, and keep their plan as the tables grow. So each must leave the planner one
// plan that is good for any table (TestHotStatementsWalkTheirIndex,
// TestClaimOfGroupsReadsFewBlocksOfAnyTable). connectionSettings and engineSettings disable
// sequential and bitmap scans, sorts, hash joins and merge joins. The statements do the rest
// in these ways:
//
//   - ORDER BY with LIMIT names an index: sorts are disabled, so only an index in this
//     order can be used. EXISTS ignores ORDER BY, so a search that needs an order is a
//     sub-select with IS TRUE (groupHoldsSQL).
//   - (group_id IS NULL) is the second column of messages_due. A condition on it names
//     that index, and the scan does not walk over messages of the other kind.
//   - thatOneSQL and IS NOT DISTINCT FROM compare without an equals sign. With one, the
//     planner could look up either side, by any index.
//   - LATERAL (… OFFSET 0) is planned on its own. A join could be reordered, and then read
//     the whole table first.
//   - ctid finds rows that the statement or its transaction has locked. Locked rows do
//     not move.
//
// The statements also keep the rules of a cluster (statement_rules_test.go). So a time that
// depends on the row is the sum of an interval and a time without time zone, as the sum with
// one is not immutable.

// thatOneSQL is m.id = a.id in the home of the statement, for steps that have a few ids a.
const thatOneSQL = `m.home = $1 AND m.id = ANY (ARRAY[a.id])`
