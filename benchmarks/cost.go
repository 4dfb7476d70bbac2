package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// cost is what a server and its private PostgreSQL have used since they started.
type cost struct {
	server, postgres float64 // seconds of CPU time
	wal              float64 // bytes of PostgreSQL's write-ahead log
}

func (v *server) cost() (cost, error) {
	text, err := v.sql("SELECT pg_current_wal_lsn() - '0/0'")
	if err != nil {
		return cost{}, err
	}
	wal, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return cost{}, err
	}
	server, _ := cpuOf(v.cmd.Process.Pid)
	return cost{server, v.postgresTime(), wal}, nil
}

func (c cost) since(before cost) cost {
	return cost{c.server - before.server, c.postgres - before.postgres, c.wal - before.wal}
}

// postgresTime returns the seconds of CPU time of all processes of the private
// PostgreSQL. The postmaster has the time of those that have ended.
func (v *server) postgresTime() float64 {
	text, _ := os.ReadFile(filepath.Join(v.data, "data", "postgres", "postmaster.pid"))
	first, _, _ := strings.Cut(string(text), "\n")
	postmaster, _ := strconv.Atoi(first)
	own, ended := cpuOf(postmaster)
	total := own + ended
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range all {
		text, _ := os.ReadFile(path)
		_, after, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(after); len(fields) > 1 && fields[1] == first {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			own, _ := cpuOf(pid)
			total += own
		}
	}
	return total
}

// cpuOf returns the seconds of CPU time of a process, and of its children that have ended
// (proc(5), /proc/pid/stat, fields 14 to 17).
func cpuOf(pid int) (own, ended float64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	if len(fields) < 15 {
		return 0, 0
	}
	seconds := func(i int) float64 {
		ticks, _ := strconv.ParseFloat(fields[i], 64)
		return ticks / 100 // of Linux
	}
	return seconds(11) + seconds(12), seconds(13) + seconds(14)
}

// costs are what a load cost PostgreSQL in each round.
type costs struct{ cpu, wal numbers }

// costColumns is the head of the columns that costs writes.
const costColumns = "PostgreSQL CPU, µs per message | WAL, bytes per message"

func (c *costs) add(r *result) {
	c.cpu, c.wal = append(c.cpu, r.cpu), append(c.wal, r.wal)
}

// String returns two cells of a table.
func (c costs) String() string {
	return fmt.Sprintf("%.1f | %.0f", c.cpu.median(), c.wal.median())
}

// statements returns the number of statements that the server has run.
func (v *server) statements() (n float64, err error) {
	_, text, err := request(http.DefaultClient, "GET", v.url+"/metrics", "")
	for _, m := range regexp.MustCompile(`(?m)^queued_statement_duration_seconds_count\{[^}]*\} (\S+)`).FindAllSubmatch(text, -1) {
		count, _ := strconv.ParseFloat(string(m[1]), 64)
		n += count
	}
	return n, err
}
