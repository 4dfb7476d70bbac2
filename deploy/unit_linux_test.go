package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// systemd-analyze rejects a unit whose program is missing, so the test names another
// program.
func TestSystemdUnderstandsTheUnitAndFindsItConfined(t *testing.T) {
	t.Parallel()
	unit := string(mustRead(t, "queued.service"))
	const program = "/usr/local/bin/queued"
	if !strings.Contains(unit, "\nExecStart="+program+" ") {
		t.Fatalf("the unit does not start %s", program)
	}
	path := filepath.Join(t.TempDir(), "queued.service")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(unit, program, "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// From 0, fully confined, to 100.
	out, err = exec.CommandContext(t.Context(), "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", path).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// The settings of the example are commented out.
func TestTheServerKnowsTheSettingsOfTheExample(t *testing.T) {
	t.Parallel()
	help, err := exec.CommandContext(t.Context(), mustBuild(t, ".."), "-help").Output()
	if err != nil {
		t.Fatal(err)
	}
	settings := regexp.MustCompile(`(?m)^#(QUEUED_\w+)=`).FindAllSubmatch(mustRead(t, "queued.env"), -1)
	if len(settings) == 0 {
		t.Error("the example has no settings")
	}
	for _, m := range settings {
		if !strings.Contains(string(help), "[$"+string(m[1])+"]") {
			t.Errorf("the server does not know %s", m[1])
		}
	}
}
