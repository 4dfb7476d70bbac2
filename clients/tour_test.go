package clients

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

const (
	tourPage        = "../docs/coming-from-sqs.md"
	serverOnPage    = "localhost:8000"
	oldServerOnPage = "localhost:9324" // whose queues are copied
)

var (
	// pythonOnPage is a program on the page, whose first line has the name of its file.
	pythonOnPage = regexp.MustCompile("(?ms)^```python\n# (\\w+\\.py)\n.*?^```$")

	// commandOnPage is a command, its further lines, and its output.
	commandOnPage = regexp.MustCompile(`(?m)^\$ (.*\n(?:> .*\n)*)((?:[^$].*\n)*)`)

	consoleOnPage = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")
	uuid          = regexp.MustCompile(`[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
)

// The page for users of Amazon SQS has commands that need the AWS CLI, boto3 and Celery.
// Like the commands of other pages, they run in one shell, and print what the page says,
// but for ids.
func TestCommandsForUsersOfSQSWorkAsPrinted(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(tourPage)
	if err != nil {
		t.Fatal(err)
	}
	queued := mustBuild(t, "..")
	url, oldURL := startServer(t, queued), startServer(t, queued)
	copied := createQueues(t, newSQS(oldURL, "any", "any"))
	here := strings.NewReplacer(serverOnPage, strings.TrimPrefix(url, "http://"), oldServerOnPage, strings.TrimPrefix(oldURL, "http://"))
	page := here.Replace(string(text))

	dir := t.TempDir()
	for _, m := range pythonOnPage.FindAllStringSubmatch(page, -1) {
		program := strings.TrimSuffix(strings.TrimPrefix(m[0], "```python\n"), "```")
		if err := os.WriteFile(filepath.Join(dir, m[1]), []byte(program), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shell := newShell(t, dir)
	commands := 0
	for _, block := range consoleOnPage.FindAllStringSubmatch(page, -1) {
		for _, m := range commandOnPage.FindAllStringSubmatch(block[1], -1) {
			commands++
			command := strings.ReplaceAll(m[1], "\n> ", "\n")
			got, want := shell.run(command), m[2]
			if uuid.ReplaceAllString(got, "ID") != uuid.ReplaceAllString(want, "ID") {
				t.Errorf("$ %sprints\n%sbut the page says\n%s", command, got, want)
			}
		}
	}
	if commands < 10 {
		t.Errorf("the page has only %d commands", commands)
	}
	if got := readQueues(t, newSQS(url, "any", "any")); !reflect.DeepEqual(got, copied) {
		t.Errorf("the copied queues are %v, want %v", got, copied)
	}
}

// createQueues creates queues to be copied, and returns their attributes by name. The
// names of dead-letter queues come last in the alphabet.
func createQueues(t *testing.T, client *sqs.Client) (queues map[string]map[string]string) {
	t.Helper()
	const arn = "arn:aws:sqs:eu-north-1:000000000000:"
	for _, v := range []sqs.CreateQueueInput{
		{QueueName: aws.String("z-dead"), Attributes: map[string]string{"RedriveAllowPolicy": `{"redrivePermission":"byQueue","sourceQueueArns":["` + arn + `a-mails"]}`}},
		{QueueName: aws.String("a-mails"), Attributes: map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"` + arn + `z-dead","maxReceiveCount":3}`, "VisibilityTimeout": "0"}, Tags: map[string]string{"team": "mail"}},
		{QueueName: aws.String("a-tickets.fifo"), Attributes: map[string]string{"FifoQueue": "true", "ContentBasedDeduplication": "true", "DelaySeconds": "5"}},
	} {
		if _, err := client.CreateQueue(t.Context(), &v); err != nil {
			t.Fatal(err)
		}
	}
	return readQueues(t, client)
}

// readQueues returns the attributes and tags of the queues to be copied.
func readQueues(t *testing.T, client *sqs.Client) (queues map[string]map[string]string) {
	t.Helper()
	queues = map[string]map[string]string{}
	for _, name := range []string{"z-dead", "a-mails", "a-tickets.fifo"} {
		attributes, err := client.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: &name, AttributeNames: []types.QueueAttributeName{"All"}})
		if err != nil {
			t.Fatal(err)
		}
		tags, err := client.ListQueueTags(t.Context(), &sqs.ListQueueTagsInput{QueueUrl: &name})
		if err != nil {
			t.Fatal(err)
		}
		queues[name] = attributes.Attributes
		for _, v := range []string{"CreatedTimestamp", "LastModifiedTimestamp", "QueueArn"} { // the ARN has the region of the client
			delete(queues[name], v)
		}
		for key, value := range tags.Tags {
			queues[name]["tag "+key] = value
		}
	}
	return queues
}

// shell runs one command after another, as a terminal does.
type shell struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

// newShell starts a shell in dir. The first Python in its PATH has boto3 and Celery.
// The shell and what it started in the background end with the test.
func newShell(t *testing.T, dir string) *shell {
	t.Helper()
	interpreter, err := exec.LookPath(python(t, "boto3, celery, pycurl"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(interpreter)+":"+os.Getenv("PATH"))
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	deadline := time.AfterFunc(2*testTimeout, stop)
	t.Cleanup(func() {
		deadline.Stop()
		stop()
		cmd.Wait()
	})
	return &shell{t, in, bufio.NewReader(out)}
}

// run returns what a command prints.
func (s *shell) run(command string) string {
	s.t.Helper()
	const end = "-- end of the command --\n"
	fmt.Fprintf(s.in, "%s\nprintf '%%s\\n' '%s'\n", command, strings.TrimSpace(end))
	var printed strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatalf("the shell ended in %s: %v", command, err)
		}
		if line == end {
			return printed.String()
		}
		printed.WriteString(line)
	}
}
