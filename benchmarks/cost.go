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

type times struct{ server, postgres float64 } // seconds of CPU

// processTimes returns the CPU time of a server and of its private PostgreSQL.
func processTimes(v *server) (t times) {
	t.server = cpuOf(v.cmd.Process.Pid)
	pid, _ := os.ReadFile(filepath.Join(v.data, "data", "postgres", "postmaster.pid"))
	first, _, _ := strings.Cut(string(pid), "\n")
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range all {
		text, _ := os.ReadFile(path)
		_, after, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(after); len(fields) > 1 && fields[1] == first {
			n, _ := strconv.Atoi(strings.Split(path, "/")[2])
			t.postgres += cpuOf(n)
		}
	}
	return t
}

func cpuOf(pid int) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100 // ticks of Linux
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
