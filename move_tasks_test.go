package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"syscall"
	"testing"
	"time"
)

// newMover returns the mover of a server, which tests run step by step.
func (s *testServer) newMover() *mover {
	return &mover{store: s.store, log: slog.New(slog.DiscardHandler), announce: s.engine.announce}
}

// mustStep does a step. It returns whether another one is due now.
func mustStep(t testing.TB, m *mover) (more bool) {
	t.Helper()
	wait, err := m.step(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return wait == 0
}

// mustMove does steps until none is due.
func mustMove(t testing.TB, m *mover) {
	t.Helper()
	for mustStep(t, m) {
	}
}

// passSecond makes the next step of all tasks due.
func (s *inspector) passSecond() {
	s.t.Helper()
	s.exec("UPDATE queued.move_tasks SET next_step_at = now()")
}

// mustStart starts a task, to the queues that messages came from if to is empty, and without
// a limit if perSecond is 0.
func (s *testServer) mustStart(from, to string, perSecond int) (id string) {
	s.t.Helper()
	id, err := s.start(from, to, perSecond)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

func (s *testServer) start(from, to string, perSecond int) (id string, err error) {
	var destination *string
	if to != "" {
		destination = &to
	}
	var rate *int
	if perSecond != 0 {
		rate = &perSecond
	}
	return s.store.startMoveTask(context.Background(), from, destination, rate)
}

// tasks returns the tasks of a queue, the latest first, as status, moved/to move, and
// failure.
func (s *testServer) tasks(from string) (all []string) {
	s.t.Helper()
	tasks, err := s.store.moveTasks(context.Background(), from, 100)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, v := range tasks {
		text := fmt.Sprintf("%s %d/%d", v.status, v.moved, v.toMove)
		if v.failure != nil {
			text += " " + *v.failure
		}
		all = append(all, text)
	}
	return all
}

// mustKill publishes messages to a queue, which it creates with the dead queue "dead", and
// makes them move there.
func (s *testServer) mustKill(queueID string, numbers ...int) {
	s.t.Helper()
	s.mustQueue(queueID, `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	for _, n := range numbers {
		s.must(201, "POST", "/queues/"+queueID+"/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n))
	}
	s.kill(queueID)
}

func TestMoveTaskSendsMessagesHome(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2, 3)
	s.mustKill("b", 4, 5)
	received := make(chan []wireMessage)
	go func() { received <- s.receive("b", "?wait_seconds=30") }()
	s.waiting("b", 1)
	s.mustStart("dead", "", 0)
	checkDiff(t, "before the first step", []string{"RUNNING 0/5"}, s.tasks("dead"))
	mustMove(t, s.newMover())
	checkDiff(t, "afterwards", []string{"COMPLETED 5/5"}, s.tasks("dead"))
	checkDiff(t, "in a", []int{1, 2, 3}, numbers(s.receive("a", "")))
	if got := <-received; len(got) == 0 || got[0].DeliveryAttempts != 1 {
		t.Errorf("a receiver that waited in b got %v", got)
	}
	checkDiff(t, "in dead", 0, s.messagesIn("dead"))
	s.wantMetrics(`queued_messages_redriven_total{queue="dead"} 5`)
}

func TestMoveTaskMovesWhatWaitedAtItsStart(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2, 3)
	s.receive("dead", "?limit=1")
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":4},"delay_seconds":60}`)
	s.mustStart("dead", "a", 0)
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":5}}`)
	mustMove(t, s.newMover())
	checkDiff(t, "tasks", []string{"COMPLETED 2/2"}, s.tasks("dead"))
	checkDiff(t, "in a", []int{2, 3}, numbers(s.receive("a", "")))
	checkDiff(t, "in dead", 3, s.messagesIn("dead"))
}

func TestMoveTaskOfManyMessagesTakesManySteps(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a")
	s.fill("dead", 2*workBatch+1)
	s.mustStart("dead", "a", 0)
	m := s.newMover()
	for _, moved := range []int{workBatch, 2 * workBatch, 2*workBatch + 1, 2*workBatch + 1} {
		mustStep(t, m)
		checkDiff(t, "moved", moved, s.messagesIn("a"))
	}
	checkDiff(t, "tasks", []string{fmt.Sprintf("COMPLETED %d/%[1]d", 2*workBatch+1)}, s.tasks("dead"))
	checkDiff(t, "in order", []int{1, 2, 3}, numbers(s.receive("a", "?limit=3")))
}

func TestMoverRestsWhileNoTaskIsRunning(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	rests := func(state string) {
		t.Helper()
		wait, err := s.newMover().step(t.Context())
		checkDiff(t, state+": error", error(nil), err)
		checkDiff(t, state+": time until the next search", moverRest, wait)
	}
	rests("without tasks")
	s.mustQueue("dead")
	s.mustKill("a", 1)
	s.mustStart("dead", "", 0)
	mustMove(t, s.newMover())
	checkDiff(t, "tasks", []string{"COMPLETED 1/1"}, s.tasks("dead"))
	rests("after a task")
}

func TestMoveTaskWithARateMovesTheMessagesOfASecond(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2, 3, 4, 5)
	s.mustStart("dead", "", 2)
	other := newTestServerOn(t, s.dsn)
	for _, moved := range []int{2, 4, 5} {
		for _, m := range []*mover{s.newMover(), other.newMover()} {
			mustMove(t, m)
			checkDiff(t, "moved in this second", moved, s.messagesIn("a"))
		}
		checkDiff(t, "seconds until the next step", true, s.count("SELECT count(*) FROM queued.move_tasks WHERE next_step_at > now() AND next_step_at < now() + interval '1.1 s'") == 1)
		s.passSecond()
	}
	mustMove(t, s.newMover())
	checkDiff(t, "tasks", []string{"COMPLETED 5/5"}, s.tasks("dead"))
}

func TestMoveTaskIsCancelledInTheMiddle(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2, 3)
	id := s.mustStart("dead", "", 1)
	mustMove(t, s.newMover())
	if _, err := s.store.cancelMoveTask(t.Context(), id, "a"); !errors.Is(err, errTaskNotFound) {
		t.Errorf("a task of another queue is cancelled: %v", err)
	}
	moved, err := s.store.cancelMoveTask(t.Context(), id, "dead")
	if err != nil || moved != 1 {
		t.Errorf("moved before it was cancelled: %d, %v, want 1", moved, err)
	}
	s.passSecond()
	mustMove(t, s.newMover())
	checkDiff(t, "in a", 1, s.messagesIn("a"))
	checkDiff(t, "tasks", []string{"CANCELLED 1/3"}, s.tasks("dead"))
	if _, err := s.store.cancelMoveTask(t.Context(), id, "dead"); !errors.Is(err, errTaskNotFound) {
		t.Errorf("a cancelled task is cancelled again: %v", err)
	}
	s.mustStart("dead", "", 0)
	mustMove(t, s.newMover())
	checkDiff(t, "tasks", []string{"COMPLETED 2/2", "CANCELLED 1/3"}, s.tasks("dead"))
}

// The cancellation waits for the step, and the number that it returns includes it.
func TestMoveTaskIsCancelledDuringAStep(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2, 3)
	id := s.mustStart("dead", "", 2)
	free := s.hold("DELETE")
	stepped, cancelled := make(chan error), make(chan int)
	go func() {
		_, err := s.newMover().step(context.Background())
		stepped <- err
	}()
	s.waitForHeld(1)
	go func() {
		moved, _ := s.store.cancelMoveTask(context.Background(), id, "dead")
		cancelled <- moved
	}()
	s.waitForLocks(1)
	free()
	if err := <-stepped; err != nil {
		t.Error(err)
	}
	checkDiff(t, "moved", 2, <-cancelled)
	checkDiff(t, "tasks", []string{"CANCELLED 2/3"}, s.tasks("dead"))
}

func TestMoveTaskFailsIfAMessageHasNoHome(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":1}}`) // did not come from a queue
	s.mustKill("a", 2, 3)
	s.mustKill("b", 4)
	s.must(204, "DELETE", "/queues/b", "")
	s.mustStart("dead", "", 0)
	mustMove(t, s.newMover())
	checkDiff(t, "tasks", []string{"FAILED 2/4 AWS.SimpleQueueService.NonExistentQueue"}, s.tasks("dead"))
	checkDiff(t, "in a", []int{2, 3}, numbers(s.receive("a", "")))
	checkDiff(t, "in dead", []int{1, 4}, numbers(s.receive("dead", "")))
}

func TestMoveTaskFailsIfItsDestinationIsDeleted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("other")
	s.mustKill("a", 1, 2, 3)
	s.mustStart("dead", "other", 1)
	mustMove(t, s.newMover())
	s.must(204, "DELETE", "/queues/other", "")
	s.passSecond()
	mustMove(t, s.newMover())
	checkDiff(t, "tasks", []string{"FAILED 1/3 AWS.SimpleQueueService.NonExistentQueue"}, s.tasks("dead"))
	checkDiff(t, "in dead", 2, s.messagesIn("dead"))
}

func TestTasksOfADeletedQueueAreDeleted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2, 3)
	s.mustStart("dead", "", 1)
	s.must(204, "DELETE", "/queues/dead", "")
	mustMove(t, s.newMover())
	checkDiff(t, "tasks", 0, s.count("SELECT count(*) FROM queued.move_tasks"))
	checkDiff(t, "in a", 0, s.messagesIn("a"))
}

func TestMoveTaskWaitsForLockedMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2, 3)
	s.mustStart("dead", "", 0)
	locked := s.begin("UPDATE queued.messages SET bytes = bytes WHERE data->>'n' = '2'")
	m := s.newMover()
	mustMove(t, m)
	checkDiff(t, "with a locked message", []string{"RUNNING 2/3"}, s.tasks("dead"))
	locked.Rollback()
	s.passSecond()
	mustMove(t, m)
	s.passSecond()
	mustMove(t, m)
	checkDiff(t, "afterwards", []string{"COMPLETED 3/3"}, s.tasks("dead"))
}

func TestServersShareMoveTasks(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2, 3, 4)
	s.mustStart("dead", "", 1)
	s.passSecond()
	stepping := s.begin("SELECT FROM queued.move_tasks FOR UPDATE")
	if wait, err := other.newMover().step(t.Context()); err != nil || wait != movePause {
		t.Errorf("a step during the step of another server: %v, %v, want another try after %v", wait, err, movePause)
	}
	checkDiff(t, "in a", 0, s.messagesIn("a"))
	stepping.Rollback() // that server has ended
	mustMove(t, other.newMover())
	s.passSecond()
	mustMove(t, s.newMover())
	s.passSecond()
	mustMove(t, other.newMover())
	checkDiff(t, "in a", 3, s.messagesIn("a"))
	checkDiff(t, "tasks", []string{"RUNNING 3/4"}, s.tasks("dead"))
}

// A step that fails delays its task, and not the others.
func TestMoveTaskThatFailsDoesNotStopOthers(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1)
	s.mustQueue("dead-2")
	s.mustQueue("b", `"dead_queue_id":"dead-2"`, `"message_max_deliveries":1`)
	s.must(201, "POST", "/queues/b/messages", `{"data":{"n":2}}`)
	s.kill("b")
	s.mustStart("dead", "", 0)
	s.mustStart("dead-2", "", 0)
	s.exec(`CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON queued.messages FOR EACH ROW WHEN (new.data->>'n' = '1') EXECUTE FUNCTION public.refuse()`)
	m := s.newMover()
	if _, err := m.step(t.Context()); err == nil {
		t.Error("the step of the first task does not fail")
	}
	mustMove(t, m)
	checkDiff(t, "the first task", []string{"RUNNING 0/1"}, s.tasks("dead"))
	checkDiff(t, "the second task", []string{"COMPLETED 1/1"}, s.tasks("dead-2"))
	checkDiff(t, "in dead", 1, s.messagesIn("dead"))
	s.exec("DROP TRIGGER refuse ON queued.messages")
	s.passSecond()
	mustMove(t, m)
	checkDiff(t, "the first task", []string{"COMPLETED 1/1"}, s.tasks("dead"))
}

func TestQueueHasOneRunningTaskAndTenInAll(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1)
	for what, v := range map[string]struct {
		from, to string
		want     error
	}{
		"unknown source":      {"none", "", errQueueNotFound},
		"unknown destination": {"dead", "none", errDestinationNotFound},
		"not a dead queue":    {"a", "", errNotDeadQueue},
	} {
		if _, err := s.start(v.from, v.to, 0); !errors.Is(err, v.want) {
			t.Errorf("%s: %v, want %v", what, err, v.want)
		}
	}
	s.mustStart("dead", "", 0)
	if _, err := s.start("dead", "a", 0); !errors.Is(err, errTaskExists) {
		t.Errorf("a second task: %v, want %v", err, errTaskExists)
	}
	mustMove(t, s.newMover())
	for range 12 {
		s.mustStart("dead", "", 0)
		mustMove(t, s.newMover())
	}
	checkDiff(t, "tasks that have ended", slices.Repeat([]string{"COMPLETED 0/0"}, 10), s.tasks("dead"))
	s.mustStart("dead", "", 0)
	checkDiff(t, "with a running one", append([]string{"RUNNING 0/0"}, slices.Repeat([]string{"COMPLETED 0/0"}, 9)...), s.tasks("dead"))
}

func TestMoveTaskLosesAndRepeatsNothingWhenItsServerIsKilled(t *testing.T) {
	t.Parallel()
	dsn := newPlainDatabase(t, "queued")
	first := startProcess(t, "-database-url", dsn)
	s := newTestServerOn(t, dsn)
	s.mustQueue("dead")
	s.mustKill("a")
	const many = 3*workBatch + 7
	s.fill("dead", many)
	ids := s.idsIn("dead")
	free := s.hold("DELETE")
	s.mustStart("dead", "a", 0)
	s.waitForHeld(1) // in the middle of the first step
	first.cmd.Process.Signal(syscall.SIGKILL)
	<-first.ended
	second := startProcess(t, "-database-url", dsn)
	free()
	eventually(t, "the second server finishes the task", func() bool {
		return s.count("SELECT count(*) FROM queued.move_tasks WHERE status = 'COMPLETED'") == 1
	})
	second.cmd.Process.Signal(syscall.SIGTERM)
	<-second.ended
	checkDiff(t, "tasks", []string{fmt.Sprintf("COMPLETED %d/%[1]d", many)}, s.tasks("dead"))
	checkDiff(t, "ids in a", ids, s.idsIn("a"))
	checkDiff(t, "in dead", 0, s.messagesIn("dead"))
}

// idsIn returns the sorted ids of the messages in a queue.
func (s *testServer) idsIn(queueID string) []string {
	s.t.Helper()
	ids, err := collect(context.Background(), s.store.db, scanText, "SELECT m.id FROM queued.messages m JOIN queued.queues q ON q.key = m.queue_key WHERE q.id = $1 ORDER BY m.id", queueID)
	if err != nil {
		s.t.Fatal(err)
	}
	return ids
}

func TestMoverLooksForTasksWhenOneStarts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1, 2)
	ctx, stop := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		s.newMover().run(ctx, started)
	}()
	s.mustStart("dead", "", 0)
	select {
	case started <- struct{}{}:
	case <-time.After(testTimeout):
		t.Fatal("the mover does not look for tasks")
	}
	eventually(t, "the task ends", func() bool { return s.tasks("dead")[0] == "COMPLETED 2/2" })
	stop()
	<-ended
}
