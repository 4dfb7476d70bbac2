package main

import (
	"os"
	"os/exec"
	"testing"
)

// The program is built without the race detector, which would need more memory.
func TestSmallServerStaysWithin64MiB(t *testing.T) {
	t.Parallel()
	program := mustBuild(t)
	cmd := exec.Command(program, "-listen", "127.0.0.1:0", "-database-url", newTestDatabase(t, "queued"))
	cmd.Env = append(os.Environ(), "GOMEMLIMIT=48MiB")
	r := startCommand(t, cmd)
	r.awaitReady()
	bench := exec.CommandContext(t.Context(), program, "bench", "-url", r.url, "-duration", "2s", "-producers", "64", "-consumers", "64")
	if out, err := bench.CombinedOutput(); err != nil {
		t.Fatalf("queued bench: %v\n%s", err, out)
	}
	most := r.peakMemory()
	t.Logf("at most %d MiB", most>>20)
	if most > 64<<20 {
		t.Errorf("the server used %d MiB", most>>20)
	}
}
