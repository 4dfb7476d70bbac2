//go:build !unix

package main

import "os/exec"

// testRun has no janitor on other systems. The tests need a private PostgreSQL, which
// runs only on Unix.
type testRun struct{ dir string }

func beginTestRun() (*testRun, error) { return nil, errNoPrivatePostgres }

func (r *testRun) adopt(cmd *exec.Cmd) {}
func (r *testRun) end() error          { return nil }
func runJanitor(dir string)            {}
