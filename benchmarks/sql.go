package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// fromSQL measures how soon a message that was published with SQL is received.
func (s *suite) fromSQL() error {
	const messages = 200
	s.write(`
## From SQL

A transaction publishes a message to a topic with queued.publish, %d times, with pauses of 20 ms. Two queues have the topic. A
long poll waits for each, at two servers on one database. The time is from the call of the function, so it contains the commit.

| receiver | p50, p99, max, ms |
|---|---|
`, messages)
	first, err := s.start()
	if err != nil {
		return err
	}
	defer first.stop()
	second, err := s.startBeside(first)
	if err != nil {
		return err
	}
	defer second.stop()
	setUp := []struct{ path, body string }{
		{"/topics", `{"id":"t"}`},
		{"/queues", `{"id":"first","topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600}`},
		{"/queues", `{"id":"second","topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600}`},
	}
	for _, k := range setUp {
		if status, response, err := request(http.DefaultClient, "POST", first.url+k.path, k.body); err != nil || status != http.StatusCreated {
			return fmt.Errorf("POST %s: %d %s, %v", k.path, status, response, err)
		}
	}
	type result struct {
		took numbers
		err  error
	}
	receive := func(v *server, queue string) <-chan result {
		done := make(chan result, 1)
		go func() {
			took, err := v.receiveFromSQL(queue, messages)
			done <- result{took, err}
		}()
		return done
	}
	atFirst, atSecond := receive(first, "first"), receive(second, "second")
	_, err = first.sql(fmt.Sprintf(`DO $$ BEGIN
    FOR n IN 1..%d LOOP
        PERFORM queued.publish('t', json_build_object('at', extract(epoch FROM clock_timestamp())));
        COMMIT;
        PERFORM pg_sleep(0.02);
    END LOOP;
END $$`, messages))
	if err != nil {
		return err
	}
	for _, r := range []struct {
		what string
		done <-chan result
	}{{"at the first server", atFirst}, {"at the second server", atSecond}} {
		v := <-r.done
		if v.err != nil {
			return v.err
		}
		slices.Sort(v.took)
		s.write("| %s | %.1f, %.1f, %.1f |\n", r.what, v.took.median(), v.took[messages*99/100], v.took[messages-1])
	}
	return nil
}

// receiveFromSQL receives messages of fromSQL in long polls that also ack, and returns the
// milliseconds that each took.
func (v *server) receiveFromSQL(queue string, messages int) (took numbers, err error) {
	ack := ""
	for range messages {
		status, response, err := request(http.DefaultClient, "POST", v.url+"/queues/"+queue+"/messages/receive", `{"limit":1,"wait_seconds":20,"ack":[`+ack+`]}`)
		now := float64(time.Now().UnixMicro()) / 1000
		if err != nil || status != http.StatusOK {
			return nil, fmt.Errorf("receive: %d %s, %v", status, response, err)
		}
		var body struct {
			Data []struct {
				ID   string
				Data struct{ At float64 }
			}
		}
		if err := json.Unmarshal(response, &body); err != nil {
			return nil, err
		}
		if len(body.Data) != 1 {
			return nil, fmt.Errorf("receive: no message")
		}
		took = append(took, now-body.Data[0].Data.At*1000)
		ack = fmt.Sprintf("%q", body.Data[0].ID)
	}
	return took, nil
}
