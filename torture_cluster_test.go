//go:build unix

package main

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"time"
)

// useCluster takes a database of the cluster to break, without tables. It returns a function
// that connects a server to the coordinator through a proxy.
func (v *torture) useCluster() (through func() (p *proxy, dsn string)) {
	v.t.Helper()
	u, err := url.Parse(testCluster.newDatabase(v.t, "template1"))
	if err != nil {
		v.t.Fatal(err)
	}
	v.dsn = keyValues(*u)
	nodes := make([]*sql.DB, len(testCluster.nodes))
	for i, node := range testCluster.nodes {
		nodes[i] = newTestDB(v.t, testCluster.on(node, strings.TrimPrefix(u.Path, "/")))
	}
	v.database = v.clusterFaults(nodes)
	return func() (*proxy, string) {
		p := newProxy(v.t, "tcp", u.Host)
		at := *u
		at.Host = p.address
		return p, keyValues(at)
	}
}

// keyValues returns the connection string of a URL, to which more settings can be added.
func keyValues(u url.URL) string {
	host, port, _ := net.SplitHostPort(u.Host)
	text := fmt.Sprintf("host='%s' port=%s user='%s' dbname='%s'", host, port, u.User.Username(), strings.TrimPrefix(u.Path, "/"))
	if password, found := u.User.Password(); found {
		text += fmt.Sprintf(" password='%s'", strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password))
	}
	for key, values := range u.Query() {
		text += fmt.Sprintf(" %s='%s'", key, values[0])
	}
	return text
}

// Programs that a node runs in its data directory, as a child of a process of PostgreSQL.
const (
	killOwnProcess = `kill -9 $PPID` // PostgreSQL then restarts all its processes
	restartNode    = `pid=$(head -1 postmaster.pid); command=$(cat postmaster.opts)
setsid sh -c "kill -QUIT $pid; while kill -0 $pid; do sleep 0.1; done; sleep %d
for attempt in $(seq -s ' ' 100); do ${command%%/postgres *}/pg_ctl -D . -o '${command#* }' start && break; sleep 0.2; done" </dev/null >>restarts.log 2>&1 &`
	pauseNode = `pid=$(head -1 postmaster.pid); pkill -STOP -P $pid; kill -STOP $pid; sleep 2; kill -CONT $pid; pkill -CONT -P $pid`
)

const moveShardSQL = `
SELECT citus_move_shard_placement(s.shardid, a.nodename, a.nodeport, b.nodename, b.nodeport, 'force_logical')
FROM pg_dist_placement s
JOIN pg_dist_node a ON a.groupid = s.groupid
JOIN pg_dist_node b ON b.groupid <> a.groupid AND b.shouldhaveshards
WHERE s.shardid IN (SELECT get_shard_id_for_distribution_column('queued.messages', home) FROM queued.queues)
ORDER BY random()
LIMIT 1`

// clusterFaults are faults of the coordinator and of the workers. The role of the tests may
// run programs on them.
func (v *torture) clusterFaults(nodes []*sql.DB) []fault {
	on := func(do func(node *sql.DB)) func() {
		return func() {
			node := nodes[rand.IntN(len(nodes))]
			do(node)
			v.awaitConnection(node)
		}
	}
	startOf := func(node *sql.DB) (at time.Time) {
		v.awaitConnection(node)
		node.QueryRow("SELECT pg_postmaster_start_time()").Scan(&at)
		return at
	}
	execute := func(node *sql.DB, program string) error {
		_, err := node.Exec("COPY (SELECT 1) TO PROGRAM $queued$" + program + "$queued$")
		return err
	}
	run := func(program string) func() {
		return on(func(node *sql.DB) { execute(node, program) })
	}
	restart := func(seconds int) func() {
		return on(func(node *sql.DB) {
			before := startOf(node)
			if execute(node, fmt.Sprintf(restartNode, seconds)) != nil {
				return
			}
			for tick, now := time.Tick(100*time.Millisecond), before; now.IsZero() || now.Equal(before); <-tick {
				now = startOf(node)
			}
		})
	}
	return []fault{
		{"kill -9 one of a node's processes", run(killOwnProcess)},
		{"stop a node at once", restart(0)},
		{"stop a node for seconds", restart(3)},
		{"pause a node", run(pauseNode)},
		{"terminate connections", on(func(node *sql.DB) {
			node.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5")
		})},
		{"move a shard", func() {
			var err error
			for range 20 { // the role of the servers has a short lock timeout on all nodes
				if _, err = v.db.Exec(moveShardSQL); err == nil {
					return
				}
			}
			v.t.Logf("move a shard: %v", err)
		}},
	}
}
