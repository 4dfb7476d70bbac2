package main

// Statements of the engine are prepared once on each connection, often while the tables
// are empty, and keep their plan as the tables grow. So each must leave the planner one
// plan that is good for any table (TestHotStatementsWalkTheirIndex). connectionSettings
// and engineSettings disable sequential and bitmap scans, sorts, hash joins and merge
// joins; what remains is said by the statements, in these ways:
//
//   - ORDER BY with LIMIT names an index: sorts are disabled, so only an index in this
//     order is left. EXISTS drops an order; a search that needs one is a sub-select
//     with IS TRUE (groupHoldsSQL).
//   - (group_id IS NULL) is the second column of messages_due. A condition on it names
//     that index, and messages of the other kind are not walked over.
//   - thatOneSQL and IS NOT DISTINCT FROM compare without an equation: an equation
//     could be turned round, and the other side be looked up, by any index.
//   - LATERAL (… OFFSET 0) is planned by itself. As a join, it could be turned round
//     and read all of the table first.
//   - ctid finds rows that the statement, or its transaction, has locked before: they
//     do not move.

// thatOneSQL is m.id = a.id, for steps that have a few ids a.
const thatOneSQL = `m.id = ANY (ARRAY[a.id])`
